"""The model of an artifact with its tokenizer: of whole weights, or of an adapter's updates and their base."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

from cluster.core.documents import parse_json
from cluster.core.errors import ArtifactError, CheckpointError
from jobs.common.arrays import Array
from jobs.common.artifact import artifact
from jobs.common.artifact.artifact import Artifact
from jobs.common.artifact.manifest import weights_digest
from jobs.transformer.build import first_lines, without_progress_bar
from jobs.transformer.weights.base import BaseWeights, base_weights
from jobs.transformer.weights.four_bits import rounded
from jobs.transformer.weights.lora import put_on

_OF_WEIGHTS = (".safetensors", ".safetensors.index.json")
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_OF_UPDATES = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "target_modules", "modules_to_save")
"""The fields of an adapter_config.json that are read. The others are as peft has them by default."""
_WITHIN = "base_model.model."
"""What peft puts before the names of a model's own parameters."""
_INDIFFERENT = ("peft_type", "peft_version", "base_model_name_or_path", "inference_mode")


class _Shared(dict[str, Tensor]):
    """The float32 tensors of a base, for as long as a model has them."""


_bases: WeakValueDictionary[str, _Shared] = WeakValueDictionary()
"""By digest: those that adapters in this process share."""


def model_and_tokenizer(opened: Artifact, kind: Any, base: str | None = None, *,
                        merged: bool = True) -> tuple[Any, Any]:
    """What transformers opens is a private copy of the small files; the weights are given to it.

    base, merged: see model.load. Raises: ArtifactError.
    """
    from transformers.models.auto.configuration_auto import AutoConfig
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    auto: Any = AutoConfig
    with tempfile.TemporaryDirectory(prefix="trainyard-model-") as folder, without_progress_bar():
        _copy_small_files(opened, Path(folder))
        architecture = auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            expected = kind.from_config(architecture, trust_remote_code=False)
        of = opened.manifest.description.base
        if of is not None:
            def read() -> _Shared:
                tensors = _read_base(opened, base or of.name)
                return tensors if of.held is None else _rounded(opened, tensors)

            tensors = read() if merged else _shared(_held(opened), read)
            return _adapted(opened, type(expected), architecture, tensors, merged=merged), tokenizer
        weights = _weights(opened) if merged else _shared(weights_digest(opened.manifest.files),
                                                          lambda: _in_float32(_weights(opened)))
        _check_shapes(opened, expected, weights)
        model, missing = _filled(type(expected), architecture, weights)
    _refuse_missing(opened, missing)
    if not merged:
        _hold(model, weights)
    return model, tokenizer


def _filled(kind: Any, architecture: Any, weights: Mapping[str, Tensor]) -> tuple[Any, list[str]]:
    """A model whose parameters are these tensors, and the names of those that there are none for."""
    model, found = kind.from_pretrained(None, config=architecture, state_dict=weights, dtype=torch.float32,
                                        output_loading_info=True)
    return model, sorted(found["missing_keys"])


def _refuse_missing(opened: Artifact, missing: list[str]) -> None:
    if missing:
        raise artifact.refused(opened.uri,
                               [f"its weights lack {len(missing)} of the model's tensors ({', '.join(missing[:3])})"])


# ── adapters ──
def _shared(digest: str, read: Callable[[], _Shared]) -> _Shared:
    """A base's tensors, which are read once for it and all its adapters."""
    if (shared := _bases.get(digest)) is None:
        shared = _bases[digest] = read()
    return shared


def _held(opened: Artifact) -> str:
    """What adapters whose base is the same have in common, which is rounded where they have updates."""
    of = opened.manifest.description.base
    assert of is not None
    return of.digest if of.held is None else f"{of.digest} {of.held} {sorted(_peft_config(opened).target_modules)}"


def _hold(model: Any, shared: Mapping[str, Tensor]) -> None:
    """For as long as the model is there, the next adapter finds them."""
    model.requires_grad_(False)
    model.base_weights = shared


def _read_base(opened: Artifact, where: str) -> _Shared:
    """Raises: ArtifactError if it is not the base that the adapter is of."""
    try:
        found = base_weights(where)
        check_base_of(opened, found)
        return _in_float32({name: _tensor(values) for name, values in found.tensors().items()})
    except (OSError, CheckpointError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"artifact {opened.uri} is an adapter, and its base {where} cannot be read "
            f"({first_lines(error) or type(error).__name__}): put the base there, or name the place where it is"
        ) from error


def _rounded(opened: Artifact, tensors: _Shared) -> _Shared:
    """The base as the adapter was trained on it (four_bits.py). Raises: ArtifactError without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ArtifactError(f"artifact {opened.uri} is an adapter of a base in 4 bits, which needs the package "
                            "bitsandbytes: pip install 'trainyard[four-bits]'")
    layers = {f"{name}.weight" for name in _peft_config(opened).target_modules}
    return _Shared({name: rounded(each) if ".".join(name.split(".")[-2:]) in layers else each
                    for name, each in tensors.items()})


def _in_float32(tensors: Mapping[str, Tensor]) -> _Shared:
    return _Shared({name: each.float() if each.is_floating_point() else each for name, each in tensors.items()})


def check_base_of(opened: Artifact, found: BaseWeights) -> None:
    """Raises: ArtifactError if an adapter is of another base."""
    of = opened.manifest.description.base
    if of is None:
        raise ArtifactError(f"artifact {opened.uri} is a whole model, not an adapter: serve it as a model")
    if found.base.digest != of.digest:
        raise ArtifactError(
            f"artifact {opened.uri} is an adapter of {of.name}, whose weights have the digest {of.digest[:12]}; those "
            f"of {found.name} have {found.base.digest[:12]}: pass the base that it was trained on, or train it on "
            "this one")


def _adapted(opened: Artifact, kind: Any, architecture: Any, tensors: _Shared, *, merged: bool) -> Any:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    given = {name: torch.from_numpy(values) for name, values in opened.tensors(f"model/{ADAPTER}").items()}
    heads = {name.removeprefix(_WITHIN): tensor for name, tensor in given.items() if "lora_" not in name}
    model, missing = _filled(kind, architecture, {**tensors, **heads})
    _refuse_missing(opened, missing)
    model = put_on(model, _peft_config(opened))
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    _refuse_missing(opened, sorted(wanted.keys() - given.keys()))
    if wrong := [name for name, tensor in wanted.items() if given[name].shape != tensor.shape]:
        raise artifact.refused(opened.uri, [f"update {wrong[0]} has the shape {tuple(given[wrong[0]].shape)}, and by "
                                            f"its config {tuple(wanted[wrong[0]].shape)}"])
    set_peft_model_state_dict(model, given)
    if merged:
        return model.merge_and_unload()
    _hold(model, tensors)
    return model


def _peft_config(opened: Artifact) -> Any:
    """Raises: ArtifactError for an adapter of another kind than those that training makes."""
    from peft import LoraConfig

    given = parse_json(opened.read(f"model/{ADAPTER_CONFIG}"))
    made = LoraConfig(**{name: given[name] for name in _OF_UPDATES if name in given})
    usual = plain(LoraConfig())
    odd = [name for name, value in given.items()
           if name not in (*_OF_UPDATES, *_INDIFFERENT) and value != usual.get(name)]
    if odd or given.get("peft_type") != "LORA":
        raise artifact.refused(opened.uri, [f"its {ADAPTER_CONFIG} has {', '.join(odd) or 'another peft_type'}, which "
                                            "is no part of LoRA as it is trained here"])
    return made


def plain(config: Any) -> dict[str, Any]:
    """The values of a peft config, as its file has them."""
    made = {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}
    return {name: getattr(value, "value", value) for name, value in made.items()}


# ── whole models ──
def _copy_small_files(opened: Artifact, folder: Path) -> None:
    for path in opened.manifest.paths:
        if path.startswith("model/") and not path.endswith(_OF_WEIGHTS):
            copy = folder / path.removeprefix("model/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(opened.read(path))


def _weights(opened: Artifact) -> dict[str, Tensor]:
    """Those of all the artifact's files of weights; an index of them is not needed."""
    found: dict[str, Tensor] = {}
    for path in opened.manifest.paths:
        if path.startswith("model/") and path.endswith(".safetensors"):
            found |= {name: _tensor(values) for name, values in opened.tensors(path).items()}
    return found


def _tensor(values: Array) -> Tensor:
    return (torch.from_numpy(values.view(np.int16)).view(torch.bfloat16) if values.dtype == np.uint16
            else torch.from_numpy(values))


def _check_shapes(opened: Artifact, expected: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Before memory is taken for what a config says. expected: the model on torch's meta device."""
    shapes = {name: parameter.shape for name, parameter in expected.named_parameters()}
    if wrong := [name for name, shape in shapes.items() if name in weights and weights[name].shape != shape]:
        raise artifact.refused(opened.uri,
                               [f"weight {wrong[0]} has the shape {tuple(weights[wrong[0]].shape)}, and by config.json "
                                 f"{tuple(shapes[wrong[0]])}"])
    _refuse_missing(opened, sorted(shapes.keys() - weights))
