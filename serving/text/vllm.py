"""Models that write text on GPUs, by vLLM in Ray's own application for it:
what `python -m serving config --engine vllm` writes.

None of this project's code runs there: Ray's ingress answers, and vLLM loads the files. `NOTES` says what that means.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import ConfigError
from jobs.common.artifact.artifact import open_artifact
from serving.core.settings import ModelSettings

NOTES = """\
# Ray's own application for vLLM answers /v1/completions and /v1/models here, not this project's endpoint.
# It checks no keys and has no limit per key, no bound on a request's size and no deadline but request_timeout_s: it
# listens on loopback, so put a gateway in front of it that does. Its answers do not name the artifact's digest. The
# artifact was verified when this file was written, and is not when vLLM loads it: keep its folder where nobody else can
# write. vLLM puts no start of a document before a prompt of text. It needs `pip install 'ray[llm]'` and GPUs on the
# nodes that serve. An adapter is asked for as MODEL:PATH, by its folder below dynamic_lora_loading_path, not by its
# name.
"""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM makes room for."""
_REMOTE = ("s3://", "gs://", "abfss://", "azure://")


def config(models: Sequence[ModelSettings], http: Mapping[str, object], timeout_s: float,
           accelerator: str | None) -> dict[str, object]:
    """For `serve deploy`. accelerator: Ray's name of the kind of GPU, such as A100. Raises: ConfigError."""
    whole = [each for each in models if not _is_adapter(each)]
    made = [_model(each, [other for other in models if _is_adapter(other) and other.base == each.uri], accelerator)
            for each in whole]
    return {"proxy_location": "EveryNode", "http_options": {"request_timeout_s": timeout_s, **http},
            "applications": [{"name": "llm", "import_path": "ray.serve.llm:build_openai_app", "route_prefix": "/",
                              "args": {"llm_configs": made}}]}


def _is_adapter(model: ModelSettings) -> bool:
    return bool(model.base) and model.base != model.uri


def _model(model: ModelSettings, adapters: Sequence[ModelSettings], accelerator: str | None) -> dict[str, object]:
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
    found = {f"{open_artifact(each.uri, each.digest).uri.rstrip('/')}/model": _adapter_config(each)
             for each in adapters}
    fields, options = lora(found) if found else ({}, {})
    return {
        **fields, "llm_engine": "vLLM",
        "model_loading_config": {"model_id": model.name, "model_source": _folder(model)},
        **({"accelerator_type": accelerator} if accelerator else {}),
        "engine_kwargs": {"tensor_parallel_size": int(model.gpus), "max_num_seqs": model.max_batch_rows,
                          "load_format": "safetensors", **options},
        "deployment_config": {"max_ongoing_requests": 2 * model.max_batch_rows, **scaling}}


def _adapter_config(adapter: ModelSettings) -> JsonObject:
    return parse_json(open_artifact(adapter.uri, adapter.digest).read("model/adapter_config.json"))


def lora(adapters: Mapping[str, JsonObject]) -> tuple[dict[str, object], dict[str, object]]:
    """Fields of an LLMConfig, and of its engine. adapters: the folder of each, with its adapter_config.json.

    Raises: ConfigError for one that Ray cannot fetch, or vLLM cannot compute.
    """
    for folder, about in adapters.items():
        if not folder.startswith(_REMOTE):
            raise ConfigError(f"--engine vllm: the adapter {folder} is on this machine, and Ray fetches adapters from "
                              f"{', '.join(_REMOTE)}: copy its artifact there")
        if about.get("use_dora"):
            raise ConfigError(f"--engine vllm: the adapter {folder} has DoRA, which vLLM does not compute: train it "
                              "with --export.merge, and pass it with --model")
    most = max(int(about["r"]) for about in adapters.values())
    if most > _RANKS[-1]:
        raise ConfigError(f"--engine vllm: an adapter has rank {most}, and vLLM takes {_RANKS[-1]} at most: train it "
                          "with --export.merge, and pass it with --model")
    return ({"lora_config": {"dynamic_lora_loading_path": _common(adapters),
                             "max_num_adapters_per_replica": len(adapters)}},
            {"enable_lora": True, "max_loras": len(adapters),
             "max_lora_rank": next(rank for rank in _RANKS if rank >= most)})


def _common(folders: Iterable[str]) -> str:
    """The folder that has them all."""
    parents = [folder.split("/")[:-1] for folder in folders]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return "/".join(parts[0] for parts in same)


def _folder(model: ModelSettings) -> str:
    """The artifact's folder in Hugging Face's form, where every node can read it."""
    artifact = open_artifact(model.uri, model.digest)
    if artifact.manifest.description.base:
        raise ConfigError(f"--engine vllm: {model.name} is an adapter: pass its base with --model, and it with "
                          "--adapter")
    if not parse_json(artifact.read("model/config.json")).get("architectures"):
        raise ConfigError(f"artifact {artifact.uri} does not name its architecture in model/config.json, by which vLLM "
                          "chooses its own class: train it again")
    if not artifact.store.is_local and not artifact.uri.startswith(_REMOTE):
        raise ConfigError(f"artifact {artifact.uri}: vLLM reads from folders and from {', '.join(_REMOTE)}: copy it "
                          "there")
    return f"{artifact.uri.rstrip('/')}/model"
