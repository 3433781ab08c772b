"""Models that write text on GPUs, by vLLM in Ray's own application for it:
what `python -m serving config --engine vllm` writes.

None of this project's code runs there: Ray's ingress answers, and vLLM loads the files. `NOTES` says what that means.
"""

from collections.abc import Mapping, Sequence

from cluster.core.documents import parse_json
from cluster.core.errors import ConfigError
from jobs.common.artifact.artifact import open_artifact
from serving.core.settings import ModelSettings

NOTES = """\
# Ray's own application for vLLM answers /v1/completions and /v1/models here, not this project's endpoint.
# It checks no keys and has no limit per key, no bound on a request's size and no deadline but request_timeout_s: it
# listens on loopback, so put a gateway in front of it that does. Its answers do not name the artifact's digest. The
# artifact was verified when this file was written, and is not when vLLM loads it: keep its folder where nobody else can
# write. vLLM puts no start of a document before a prompt of text. It needs `pip install 'ray[llm]'` and GPUs on the
# nodes that serve.
"""
_REMOTE = ("s3://", "gs://", "abfss://", "azure://")


def config(models: Sequence[ModelSettings], http: Mapping[str, object], timeout_s: float,
           accelerator: str | None) -> dict[str, object]:
    """For `serve deploy`. accelerator: Ray's name of the kind of GPU, such as A100. Raises: ConfigError."""
    return {"proxy_location": "EveryNode", "http_options": {"request_timeout_s": timeout_s, **http},
            "applications": [{"name": "llm", "import_path": "ray.serve.llm:build_openai_app", "route_prefix": "/",
                              "args": {"llm_configs": [_model(each, accelerator) for each in models]}}]}


def _model(model: ModelSettings, accelerator: str | None) -> dict[str, object]:
    """The fields of ray.serve.llm's LLMConfig."""
    if not model.generates:
        raise ConfigError(f"--engine vllm: {model.name} writes no text: leave it to an endpoint without --engine")
    if model.gpus < 1 or model.gpus != int(model.gpus):
        raise ConfigError(f"--gpus-per-replica {model.gpus:g}: vLLM computes on whole GPUs: pass 1 or more")
    if model.min_replicas == model.max_replicas:
        scaling: dict[str, object] = {"num_replicas": model.max_replicas}
    else:
        scaling = {"autoscaling_config": {"min_replicas": model.min_replicas, "max_replicas": model.max_replicas,
                                          "target_ongoing_requests": max(1, model.max_batch_rows // 2)}}
    return {
        "model_loading_config": {"model_id": model.name, "model_source": _folder(model)}, "llm_engine": "vLLM",
        **({"accelerator_type": accelerator} if accelerator else {}),
        "engine_kwargs": {"tensor_parallel_size": int(model.gpus), "max_num_seqs": model.max_batch_rows,
                          "load_format": "safetensors"},
        "deployment_config": {"max_ongoing_requests": 2 * model.max_batch_rows, **scaling}}


def _folder(model: ModelSettings) -> str:
    """The artifact's folder in Hugging Face's form, where every node can read it."""
    artifact = open_artifact(model.uri, model.digest)
    if not parse_json(artifact.read("model/config.json")).get("architectures"):
        raise ConfigError(f"artifact {artifact.uri} does not name its architecture in model/config.json, by which vLLM "
                          "chooses its own class: train it again")
    if not artifact.store.is_local and not artifact.uri.startswith(_REMOTE):
        raise ConfigError(f"artifact {artifact.uri}: vLLM reads from folders and from {', '.join(_REMOTE)}: copy it "
                          "there")
    return f"{artifact.uri.rstrip('/')}/model"
