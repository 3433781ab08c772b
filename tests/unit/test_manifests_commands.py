"""What the manifests of k8s/ have Ray run: command lines that the jobs' own parsers take,
and a config that Serve takes."""

import importlib
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml

from jobs.common import config as configs
from jobs.common.config import Config, RunConfig
from jobs.common.predicting.predict import parser as predict_parser
from serving.__main__ import parser as serving_parser
from serving.commands import deploy_config
from serving.core import api_keys as keys
from serving.core.settings import INGRESS, EndpointSettings, ModelSettings
from tests.manifests import Document, cluster_of, job_of, named, need_kubectl, rendered, renderer
from trainyard.retrain import parser as retrain_parser
from tuning.options import combined

SERVING = [name for name in renderer().OVERLAYS if name.startswith("serving")]
TRAINING = [name for name in renderer().OVERLAYS if name not in SERVING]
RUNS = [name for name in renderer().JOBS if name not in ("predict", "retrain", "serve-config")]


class Said(HTTPServer):
    """Answers every GET with what it is told to."""

    said = (200, b"success")


@contextmanager
def answering() -> Iterator[Said]:
    class Handler(BaseHTTPRequestHandler):
        server: Said

        def do_GET(self) -> None:
            status, body = self.server.said
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with Said(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(5)


@pytest.fixture(autouse=True)
def _kubectl() -> None:
    need_kubectl()


def words(command: str, documents: tuple[Document, ...]) -> list[str]:
    """As the submitter's shell takes a command apart, with the settings in its environment."""
    (settings,) = [each["data"] for each in documents
                   if each["kind"] == "ConfigMap" and each["metadata"]["name"].endswith("-settings")]
    done = subprocess.run(["bash", "-euc", f"printf '%s\\0' {command}"], env={**settings, "PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def config_of(command: list[str]) -> Config:
    """Raises: ConfigError as the job would."""
    assert command[:2] == ["python", "-m"], command
    searched = command[2] == "tuning"
    job = command[3] if searched else command[2].removeprefix("jobs.")
    kind: Any = importlib.import_module(f"jobs.{job}.job").JOB.config_type
    return configs.parse(combined(kind) if searched else kind, command[4 if searched else 3:], command[2])


@pytest.mark.parametrize("overlay", TRAINING)
@pytest.mark.parametrize("job", RUNS)
def test_entrypoints_are_command_lines_that_the_jobs_take(job: str, overlay: str) -> None:
    for components in ((), ("autoscaler", "storage-s3", "spot")):
        documents = rendered(overlay, components, job)
        (made,) = [found for found in map(job_of, documents) if found]
        run = config_of(words(made["entrypoint"], documents)).run
        assert run.storage == ("s3://my-bucket/trainyard" if components else "/storage")
        assert (run.tracking_uri or "").startswith("http://" if components else "sqlite:////storage/")
        if job != "transformer-zero3" or overlay == "deepspeed":
            check_it_fits(run, made["rayClusterSpec"])


def check_it_fits(run: RunConfig, cluster: Document) -> None:
    """The workers that a run starts with find room in those that the cluster has, or may have."""
    group = cluster["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    each = int(limits["cpu"]) // run.cpus_per_worker
    if run.gpus_per_worker:
        each = min(each, int(limits.get("nvidia.com/gpu", "0")) // run.gpus_per_worker)
    assert each * group["maxReplicas"] >= run.min_workers, (run.workers, limits)
    assert bool(run.gpus_per_worker) == ("nvidia.com/gpu" in limits)


def test_a_flag_that_no_job_has_is_found() -> None:
    documents = rendered("cpu", (), "mlp")
    command = words("python -m jobs.mlp --run.nmae mlp --run.storage $TRAINYARD_STORAGE", documents)
    with pytest.raises(configs.ConfigError, match="nmae"):
        config_of(command)
    with pytest.raises(subprocess.CalledProcessError):
        words("python -m jobs.mlp --run.storage $TRAINYARD_STORGE", documents)


def test_runs_that_can_be_there_at_once_have_names_of_their_own() -> None:
    found = [config_of(words(next(filter(None, map(job_of, documents)))["entrypoint"], documents)).run.name
             for documents in (rendered("cpu", (), job) for job in RUNS)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("overlay", TRAINING)
def test_what_trains_again_is_a_command_line_that_it_and_the_job_take(overlay: str) -> None:
    for components in ((), ("autoscaler", "storage-s3", "spot")):
        documents = rendered(overlay, components, "retrain")
        (made,) = [found for found in map(job_of, documents) if found]
        command = words(made["entrypoint"], documents)
        assert command[:3] == ["python", "-m", "trainyard.retrain"]
        at = command.index("--")
        asked = retrain_parser().parse_args(command[3:at])
        assert asked.uri == f"{asked.storage}/incoming/new" and asked.tracking_uri
        check_it_fits(config_of(["python", "-m", "jobs.mlp", *command[at + 1:]]).run, made["rayClusterSpec"])


@pytest.mark.parametrize("overlay", TRAINING)
def test_what_predicts_is_a_command_line_that_it_takes(overlay: str) -> None:
    for components in ((), ("autoscaler", "storage-s3")):
        documents = rendered(overlay, components, "predict")
        (made,) = [found for found in map(job_of, documents) if found]
        command = words(made["entrypoint"], documents)
        assert command[:3] == ["python", "-m", "jobs.common.predicting.predict"]
        asked = predict_parser().parse_args(command[3:])
        storage = "s3://my-bucket/trainyard" if components else "/storage"
        assert (asked.storage, asked.out) == (storage, f"{storage}/answers/mlp.parquet")


def test_what_prints_an_endpoint_s_config_is_a_command_line_that_serving_takes() -> None:
    documents = rendered("cpu", (), "serve-config")
    script = named(documents, "Job", "serve-config")["spec"]["template"]["spec"]["containers"][0]["args"][0]
    command = words(script.partition(" 2> ")[0], documents)
    options = serving_parser().parse_args(command[3:])
    assert command[:3] == ["python", "-m", "serving"] and options.command == "config"
    assert options.model == ["digits=/storage/mlp/artifact"] and options.host == "0.0.0.0"
    endpoint = endpoint_of(serve_config("serving"))
    assert options.keys == endpoint["keys_file"]
    assert (options.min_replicas, options.max_replicas) == (endpoint["min_replicas"], endpoint["max_replicas"])


# ── the endpoint ──
def serve_config(overlay: str) -> dict[str, Any]:
    return yaml.safe_load(named(rendered(overlay), "RayService")["spec"]["serveConfigV2"])


def endpoint_of(config: dict[str, Any]) -> dict[str, Any]:
    return next(each for each in config["applications"] if each["name"] == "endpoint")["args"]


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field` is deprecated")  # Ray Serve's, of Pydantic
@pytest.mark.parametrize("overlay", SERVING)
def test_the_endpoint_s_config_is_one_that_serve_takes(overlay: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    config = serve_config(overlay)
    schema = ServeDeploySchema.model_validate(config)
    assert schema.http_options.host == "0.0.0.0" and schema.http_options.port == 8000
    for application in schema.applications:
        module, _, name = application.import_path.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    with pytest.raises(ValueError, match="import_pth"):
        ServeDeploySchema.model_validate({"applications": [{"name": "a",
                                                            "import_pth": "serving.endpoint.app:endpoint"}]})


@pytest.mark.parametrize("overlay", SERVING)
def test_the_endpoint_s_config_is_one_that_this_version_writes(overlay: str) -> None:
    config = serve_config(overlay)
    settings = EndpointSettings(**endpoint_of(config))
    models = [ModelSettings(**each) for each in settings.own]
    weights = {model.name: {model.version: 1.0} for model in models}
    http = {"host": "0.0.0.0", "port": 8000}
    assert config == deploy_config.config(models, weights, settings, http)


@pytest.mark.parametrize("overlay", SERVING)
def test_the_endpoint_asks_for_keys_from_a_file_that_is_there_where_it_runs(overlay: str) -> None:
    settings = EndpointSettings(**endpoint_of(serve_config(overlay)))
    service = named(rendered(overlay), "RayService")
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    (mount,) = [each for each in worker["containers"][0]["volumeMounts"] if each["name"] == "keys"]
    (volume,) = [each for each in worker["volumes"] if each["name"] == "keys"]
    assert settings.auth and settings.keys_file == f"{mount['mountPath']}/keys" and mount["readOnly"]
    assert volume["secret"]["secretName"] == "trainyard-api-keys"
    assert keys.VARIABLE not in str(service), "keys in the environment are never replaced without a restart"


@pytest.mark.parametrize("overlay", SERVING)
def test_the_endpoint_s_replicas_fit_its_cluster(overlay: str) -> None:
    settings = EndpointSettings(**endpoint_of(serve_config(overlay)))
    cluster = cluster_of(named(rendered(overlay), "RayService"))
    assert cluster is not None
    group = cluster["workerGroupSpecs"][0]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    needed = sum(ModelSettings(**each).cpus for each in settings.own)
    assert group["maxReplicas"] * (cpus // needed) >= settings.max_replicas
    assert group["minReplicas"] * (cpus // needed) >= settings.min_replicas, (
        "until the cluster has grown it is not whole")
    assert INGRESS in str(serve_config(overlay))


def test_a_worker_is_ready_when_its_raylet_and_its_proxy_both_say_so() -> None:
    """The probe's own command, with ports of servers that are here."""
    service = named(rendered("serving"), "RayService")
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    *shell, script = worker["readinessProbe"]["exec"]["command"]
    with answering() as raylet, answering() as proxy:
        ports = {"52365": raylet.server_address[1], "8000": proxy.server_address[1]}
        here = re.sub(r"localhost:(\d+)", lambda found: f"127.0.0.1:{ports[found[1]]}", script)

        def ready() -> bool:
            return subprocess.run([*shell, here], capture_output=True, check=False).returncode == 0

        assert ready()
        proxy.said = (503, b"This node is being drained.")
        assert not ready()
        proxy.said, raylet.said = (200, b"success"), (200, b"not yet")
        assert not ready()


def test_serve_s_own_settings_are_those_that_an_endpoint_of_one_machine_has() -> None:
    """But for three: it listens to all of the network, whoever drains it is on other machines,
    and HAProxy is found by its path."""
    made = dict(named(rendered("serving"), "ConfigMap", "trainyard-serving")["data"])
    own = dict(deploy_config.SERVE_SETTINGS)
    assert own.pop("RAY_SERVE_DEFAULT_HTTP_HOST") == "127.0.0.1"
    assert own.pop("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S") and own.pop("RAY_SERVE_LOG_TO_STDERR")
    assert made.pop("RAY_SERVE_HAPROXY_BINARY_PATH") == "/usr/local/bin/trainyard-haproxy"
    assert made == own
