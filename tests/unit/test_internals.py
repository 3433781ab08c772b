"""The private and undocumented symbols of libraries that we use: an upgrade that moves one fails here, by its name."""

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

import pytest

from tests.layering import internals_modules, private_symbols

pytestmark = pytest.mark.filterwarnings("ignore")  # what libraries warn of as they are imported is not asked here

ZERO3 = "deepspeed.runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3"
CALLS = {
    # cluster/core/ray_internals.py
    "ray._private.services.canonicalize_bootstrap_address": "address",
    "ray._private.services.find_node_ids": "",
    "ray._private.services.get_node": "address, node_id",
    "ray._private.ray_constants.get_runtime_env_default_excludes": "",
    "ray._private.worker.print_to_stdstream": "data, ignore_prefix=",
    "ray._raylet.Config.initialize": "settings",
    "ray._raylet.AuthenticationTokenLoader.instance": "",
    "ray._raylet.AuthenticationTokenLoader.has_token": "self, ignore_auth_mode=",
    "ray._raylet.AuthenticationTokenLoader.reset_cache": "self",
    "ray._private.authentication.http_token_authentication.get_auth_headers_if_auth_enabled": "headers",
    "ray._private.grpc_utils.init_grpc_channel": "address, options",
    "ray._private.runtime_env.packaging._get_excludes": "root, excludes",
    "ray._private.runtime_env.packaging._dir_travel": "root, excludes, handler, include_gitignore, logger",
    "ray.autoscaler._private.kuberay.autoscaling_config._derive_autoscaling_config_from_ray_cr": "raycluster",
    "ray._private.utils.write_ray_address": "address, temp_dir",
    "ray._private.node.Node": "parameters, head=, shutdown_at_exit=, spawn_reaper=",
    "ray._private.node.Node.start_api_server": "self, include_dashboard=, raise_on_failure=",
    "ray._private.node.Node.dead_processes": "self",
    "ray._private.node.Node.get_session_dir_path": "self",
    "ray._private.parameter.RayParams": (
        "node_ip_address=, node_name=, temp_dir=, num_cpus=, num_gpus=, object_store_memory=, "
        "dashboard_agent_listen_port=, min_worker_port=, max_worker_port=, gcs_address=, include_log_monitor=, "
        "gcs_server_port=, include_dashboard=, dashboard_host=, dashboard_port=, autoscaling_config="),
    "ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_process_visible_accelerator_ids": "",
    "ray._private.accelerators.NvidiaGPUAcceleratorManager.get_current_node_num_accelerators": "",
    # jobs/common/execution/ray_internals.py
    "ray.train.v2._internal.execution.callback.ControllerCallback.after_controller_start": "self, train_run_context",
    "ray.train.v2._internal.execution.worker_group.DefaultPlacementGroupHandle": "placement_group",
    "ray.train.v2._internal.execution.worker_group.DefaultPlacementGroupHandle.shutdown": "self",
    "ray.train.v2._internal.execution.worker_group.worker_group.WorkerGroup._create_placement_group": "self, scaling, "
                                                                                                      "context",
    "ray.train.v2.api.data_parallel_trainer.DataParallelTrainer._create_default_callbacks": "self",
    # serving
    "ray.serve._private.api.serve_start": "http_options=, grpc_options=, proxy_location=, global_logging_config=",
    "ray.serve.context._get_global_client": "raise_if_no_controller_running=",
    "ray.serve._private.client.ServeControllerClient.deploy_apps": "self, schema",
    "ray.serve._private.client.ServeControllerClient.get_serve_details": "self",
    "ray.serve._private.replica.add_port_to_grpc_server": "server, address",
    "ray.serve._private.default_impl.add_grpc_address": "server, address",
    "ray.serve.get_deployment_handle": "deployment, application, _check_exists=",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_headers_complete": "self",
    # jobs/pytorch
    "torch._inductor.cpp_builder.get_cpp_compiler": "",
    # jobs/transformer/strategies
    "deepspeed.ops.op_builder.async_io.AsyncIOBuilder.is_compatible": "self",
    f"{ZERO3}._swappable_optimizer_subgroup": "self, group",
    f"{ZERO3}._optimizer_states_and_gradient_swap_in": "self, group",
    f"{ZERO3}._optimizer_states_and_gradient_swap_out": "self, group",
    f"{ZERO3}.get_param_id": "self, parameter",
    # jobs/cnn
    "tensorflow.python.eager.context.context": "",
    "tensorflow.python.eager.context._reset_context": "",
    "tensorflow.python.framework.config.disable_op_determinism": "",
    # tuning/sampler.py
    "optuna.trial.Trial": "study, trial_id",
}
"""Functions with what they are called with: `name=` is a keyword.
What is patched or overridden is called so by the library."""
VALUES: dict[str, type] = {
    "ray._private.ray_constants.ENABLE_RAY_CLUSTER": bool,
    "ray._private.ray_constants.DASHBOARD_CLIENT_MAX_SIZE": int,
    "ray._private.ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE": str,
    "ray._private.worker.global_worker": object,
    "ray._private.node.Node.webui_url": property,
    "ray.train.backend.Backend.has_replica_groups": bool,
    "ray.train.backend.BackendConfig.backend_cls": property,
    "ray.train.v2._internal.callbacks.datasets.DatasetsCallback": type,
    "ray.train.v2._internal.callbacks.placement_group_callback.PlacementGroupCleanerCallback": type,
    "ray.serve._private.client.ServeControllerClient.http_config": property,
    "ray.serve._private.http_util.socket.socket": type,
    "ray.serve._private.grpc_util.DEFAULT_GRPC_SERVER_OPTIONS": list,
    "tensorflow.tsl.profiler.protobuf.xplane_pb2.XSpace": type,
    "torch._inductor.exc.InvalidCxxCompiler": type,
    "torch.distributed.distributed_c10d._world.group_count": int,
    "deepspeed.comm.comm.cdb": object,
    "deepspeed.ops.__compatible_ops__": dict,
    "deepspeed.ops.op_builder.cpu.ShareMemCommBuilder.NAME": str,
    "deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK": list,
    "deepspeed.runtime.zero.parameter_offload.DeepSpeedZeRoOffload._register_deepspeed_module": object,
    "deepspeed.runtime.zero.partition_parameters.Init.param_id": int,
    **{f"deepspeed.utils.groups.{name}": object for name in (
        "_WORLD_GROUP", "_DATA_PARALLEL_GROUP", "_MODEL_PARALLEL_GROUP", "_ZERO_PARAM_INTRA_PARALLEL_GROUP")},
}
"""Variables, properties and classes, with their types."""
WORDS = {
    "ray._private.node": ["self.all_processes", "self._node_id"],
    "ray.serve.handle": ["self._router"],
    "ray.serve._private.router": ["self._asyncio_router", "def request_router("],
    "ray.serve._private.request_router.request_router": ["def curr_replicas("],
    "torch.optim.optimizer": ['getattr(self.__class__.step, "hooked", None)'],
    "deepspeed.runtime.zero.stage_1_and_2": ["self.bit16_groups", "self.single_partition_of_fp32_groups",
                                             "._hp_mapping"],
    "deepspeed.runtime.zero.stage3": ["self.fp32_partitioned_groups_flat", "self.grad_position"],
    "deepspeed.runtime.zero.partition_parameters": [".ds_numel", ".ds_tensor"],
    "deepspeed.utils.tensor_fragment": ["hp_fragment_address", "lp_fragment_address"],
    "tensorflow.python.eager.context": ["self._initialized"],
    "argparse": ["self._actions", "class _SubParsersAction"],
}
"""What only objects have that take a cluster or a group to make: a module's text must have it."""
GCS = {
    "NodeInfoGcsService.CheckAlive": ([], ["ray_version"]),
    "NodeInfoGcsService.GetAllNodeInfo": ([], [f"node_info_list.{name}" for name in (
        "node_id", "node_name", "node_manager_address", "node_manager_port", "state", "is_head_node", "resources_total",
        "death_info.reason", "metrics_export_port")]),
    "NodeResourceInfoGcsService.GetAllAvailableResources": ([], ["resources_list.node_id",
                                                                 "resources_list.resources_available"]),
    "NodeResourceInfoGcsService.GetDrainingNodes": ([], ["draining_nodes.node_id"]),
    "JobInfoGcsService.GetAllJobInfo": (["skip_submission_job_info_field", "skip_is_running_tasks_field"], [
        f"job_info_list.{name}" for name in ("job_id", "config.metadata", "config.ray_namespace", "entrypoint",
                                             "driver_address.ip_address", "start_time", "is_dead")]),
    "ActorInfoGcsService.GetNamedActorInfo": (["name", "ray_namespace"],
                                              ["actor_table_data.actor_id", "actor_table_data.state"]),
    "ActorInfoGcsService.GetAllActorInfo": (["filters.state"], [
        f"actor_table_data.{name}" for name in ("name", "node_id", "required_resources", "ray_namespace")]),
    "PlacementGroupInfoGcsService.GetAllPlacementGroup": ([], ["placement_group_table_data"]),
    "InternalKVGcsService.InternalKVGet": (["key", "namespace"], ["value"]),
    "InternalKVGcsService.InternalKVPut": (["key", "value", "namespace", "overwrite"], []),
    "InternalKVGcsService.InternalKVDel": (["key", "namespace"], []),
    "AutoscalerStateService.GetClusterStatus": ([], [f"autoscaling_state.{name}" for name in (
        "pending_instance_requests.ray_node_type_name", "pending_instance_requests.count",
        "pending_instances.ray_node_type_name", "failed_instance_requests.ray_node_type_name",
        "failed_instance_requests.reason")]),
}
"""Calls of the control store, with the fields of the request and of the reply."""


@pytest.mark.parametrize("symbol", CALLS)
def test_a_function_takes_what_it_is_called_with(symbol: str) -> None:
    arguments = [name for name in CALLS[symbol].split(", ") if name]
    try:
        inspect.signature(_found(symbol)).bind(*[None for name in arguments if not name.endswith("=")],
                                               **{name[:-1]: None for name in arguments if name.endswith("=")})
    except TypeError as error:
        pytest.fail(f"{symbol} has another signature: {error}")


@pytest.mark.parametrize("symbol", VALUES)
def test_a_value_is_where_it_was(symbol: str) -> None:
    assert isinstance(_found(symbol), VALUES[symbol]), f"{symbol} is of another type: {type(_found(symbol))}"


@pytest.mark.parametrize("module", WORDS)
def test_objects_have_their_attributes(module: str) -> None:
    text = inspect.getsource(_found(module))
    assert [word for word in WORDS[module] if word not in text] == [], f"moved from {module}"


@pytest.mark.parametrize("call", GCS)
def test_the_control_store_takes_and_answers_the_same_fields(call: str) -> None:
    from ray.core.generated import autoscaler_pb2, gcs_service_pb2

    service, method = call.split(".")
    described: Any = autoscaler_pb2 if service == "AutoscalerStateService" else gcs_service_pb2
    assert service in described.DESCRIPTOR.services_by_name, f"service {service} moved"
    found = described.DESCRIPTOR.services_by_name[service].methods_by_name.get(method)
    assert found is not None, f"{call} moved"
    assert found.input_type.name == f"{method}Request"
    for message, fields in zip((found.input_type, found.output_type), GCS[call], strict=True):
        assert [field for field in fields
                if not _has_field(message, field.split("."))] == [], f"{call}: moved from {message.name}"


def test_the_numbers_of_deaths_and_states_are_the_same() -> None:
    from ray.core.generated.common_pb2 import NodeDeathInfo
    from ray.core.generated.gcs_pb2 import ActorTableData, GcsNodeInfo

    assert {"EXPECTED_TERMINATION", "AUTOSCALER_DRAIN_IDLE",
            "AUTOSCALER_DRAIN_PREEMPTED"} <= set(NodeDeathInfo.Reason.keys())
    assert (ActorTableData.ALIVE, GcsNodeInfo.ALIVE) == (2, 0)


def test_deepspeed_counts_modules_in_a_list_that_is_a_default_argument() -> None:
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    ((count,),) = DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__
    assert isinstance(count, int), "DeepSpeedZeRoOffload._register_deepspeed_module counts elsewhere"


def test_a_trial_of_a_study_in_memory_has_its_number_for_an_id() -> None:
    import optuna

    study = optuna.create_study()
    for number in range(2):
        assert (study.ask().number, optuna.trial.Trial(study, number).number) == (number, number)


def test_each_symbol_of_an_internals_module_is_in_these_tables() -> None:
    known = [*CALLS, *VALUES, *(f"{module}.{word.strip('().')}" for module, words in WORDS.items() for word in words)]
    missing = [(path.name, symbol) for path in internals_modules() for symbol in private_symbols(path.read_text())
               if not symbol.startswith("ray.core.generated")
               and not any(f"{name}.".startswith(f"{symbol}.") or symbol.rpartition(".")[2] in name.split(".")
                           for name in known)]
    assert missing == []


def _found(symbol: str) -> Any:
    """Raises: pytest's failure, with the symbol's name."""
    if symbol.startswith("tensorflow."):
        importlib.import_module("jobs.cnn.framework")  # which loads what must come before TensorFlow
    parts, found, last = symbol.split("."), None, 0
    for last in range(1, len(parts) + 1):
        try:
            found = importlib.import_module(".".join(parts[:last]))
        except ImportError:
            last -= 1
            break
    for name in parts[last:]:
        if not hasattr(found, name):
            pytest.fail(f"{symbol} is gone")
        found = getattr(found, name)
    return found


def _has_field(message: Any, path: Sequence[str]) -> bool:
    field = message.fields_by_name.get(path[0])
    return field is not None and (len(path) == 1 or _has_field(field.message_type, path[1:]))
