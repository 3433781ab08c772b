"""From a checkpoint's slices to a Hugging Face folder, one tensor in memory at a time:
never two copies of a model on one host."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.core.storage import Store
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact, weights_file
from jobs.common.checkpoint.safetensors_image import header_bytes, read_header
from jobs.common.checkpoint.store import Checkpoint
from jobs.common.training.job import TrainingResult
from jobs.transformer.strategies.shards import WEIGHTS, Slice
from jobs.transformer.weights.base import place_of

MOST_BYTES = 5_000_000_000
Content = bytes | Callable[[], Iterable[bytes | memoryview]]


def hugging_face_files(trained: TrainingResult, most_bytes: int = MOST_BYTES) -> dict[str, Content]:
    """config.json, and model.safetensors, or several with their index where they are larger than `most_bytes`.

    Of an adapter its own config and weights, as peft writes them.
    """
    from jobs.transformer.build import build_model, skeleton

    config, lora = trained.config, trained.config.model.lora_rank is not None
    partial = lora or bool(config.model.freeze)
    model = (build_model if partial else skeleton)(config, trained.dataset.details, trained.dataset.class_names)
    slices = Slices.of(trained.store.child("checkpoints"), trained.best)
    if partial:
        _update(model, slices)
        if config.exports_adapter:
            return _adapter(model, place_of(config.model.origin))
        model = model.merge_and_unload() if lora else model
        read: Callable[[str], Array] = {n: p.detach().numpy() for n, p in model.named_parameters()}.__getitem__
    else:
        read = slices.whole
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return {"config.json": _architecture(model), **_weights(shapes, read, most_bytes)}


def write_folder(artifact: Artifact, folder: Path) -> None:
    """The model of an artifact as other programs read it; of an adapter its base with the updates added."""
    if artifact.manifest.description.base is not None:
        from jobs.transformer.model import load

        merged = load(artifact)
        for part in (merged.model, merged.tokenizer):
            part.save_pretrained(folder)
        return
    for path in artifact.manifest.paths:
        if path.startswith("model/"):
            artifact.store.copy_to(Store.open(str(folder)), path, path.removeprefix("model/"))


def _architecture(model: Any) -> bytes:
    model.config.use_cache = True
    model.config.architectures = [type(model).__name__]  # other engines choose their own class by it
    return (model.config.to_json_string(use_diff=False) + "\n").encode()


def _update(model: Any, slices: "Slices") -> None:
    """What was trained of it: updates of low rank and heads, or the layers that were not frozen."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.tensor(slices.whole(name)).view_as(parameter))


def _adapter(model: Any, base: str) -> dict[str, Content]:
    from peft import get_peft_model_state_dict

    from jobs.transformer.weights.stored import ADAPTER, ADAPTER_CONFIG, plain

    about = plain(model.peft_config["default"]) | {"base_model_name_or_path": base, "inference_mode": True}
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {"config.json": _architecture(model.get_base_model()),
            ADAPTER_CONFIG: (json.dumps(about, indent=1, sort_keys=True) + "\n").encode(),
            ADAPTER: weights_file({name: tensor.detach().numpy() for name, tensor in tensors.items()})}


def _weights(shapes: Mapping[str, tuple[int, ...]], read: Callable[[str],
                                                                   Array], most_bytes: int) -> dict[str, Content]:
    groups = _grouped(shapes, most_bytes)
    if len(groups) == 1:
        return {"model.safetensors": _safetensors(groups[0], shapes, read)}
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    places = {tensor: name for name, group in zip(names, groups, strict=True) for tensor in group}
    index = {"metadata": {"total_size": sum(map(_nbytes, shapes.values()))}, "weight_map": places}
    made: dict[str, Content] = {
        name: _safetensors(group, shapes, read) for name, group in zip(names, groups, strict=True)}
    return made | {"model.safetensors.index.json": json.dumps(index, indent=1, sort_keys=True).encode()}


def _grouped(shapes: Mapping[str, tuple[int, ...]], most_bytes: int) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if groups[-1] and size + _nbytes(shape) > most_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += _nbytes(shape)
    return groups


def _safetensors(names: list[str], shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], Array]) -> Content:
    """One file, float32, a tensor at a time (the format: https://github.com/huggingface/safetensors#format)."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        stop = start + _nbytes(shapes[name])
        entries[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            yield np.ascontiguousarray(read(name), np.float32).tobytes()

    return pieces


def _nbytes(shape: tuple[int, ...]) -> int:
    return 4 * int(np.prod(shape, dtype=np.int64))


@dataclass(frozen=True)
class Slices:
    """Where in a checkpoint's files the slices of the weights are."""

    store: Store
    places: Mapping[str, list[tuple[int, str, int, int]]]
    """name -> (first element, file, first byte, last byte) of each slice."""

    @staticmethod
    def of(store: Store, checkpoint: Checkpoint) -> "Slices":
        """Reads the headers of an intact checkpoint's files."""
        places: dict[str, list[tuple[int, str, int, int]]] = {}
        for entry in checkpoint.files:
            with store.reading(entry.path) as stream:
                head = stream.read(8)
                data_start, specs = read_header(head + stream.read(header_bytes(head)), entry.size)
            for spec in specs:
                piece = Slice.parse(spec.name)
                if piece.kind == WEIGHTS:
                    place = (piece.start, entry.path, data_start + spec.start, data_start + spec.stop)
                    places.setdefault(piece.name, []).append(place)
        return Slices(store, places)

    def whole(self, name: str) -> Array:
        """A parameter, flattened, float32."""
        pieces = sorted(self.places[name])
        values = [self._read(path, first, last) for _, path, first, last in pieces]
        return np.concatenate(values) if len(values) > 1 else values[0]

    def _read(self, path: str, first: int, last: int) -> Array:
        with self.store.reading(path) as stream:
            stream.seek(first)
            return np.frombuffer(stream.read(last - first), np.float32)
