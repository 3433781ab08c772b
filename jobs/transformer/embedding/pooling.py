"""How the vectors of a text's tokens become one that stands for the text: as the config says it, or as the pretrained
model that training began with says it itself, in the files of sentence-transformers. Imports no framework."""

from pathlib import Path
from typing import Any

from cluster.core.auth import expanded
from cluster.core.documents import MOST_JSON_BYTES, DocumentError, parse_json, read_bounded
from cluster.core.errors import ConfigError
from jobs.common.artifact.manifest import Embedding, Pooling
from jobs.transformer.config import TransformerConfig

_MODES: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_MODULES = ("Transformer", "Pooling", "Normalize")


def embedding_of(config: TransformerConfig, dimensions: int) -> Embedding | None:
    """What the artifact's manifest says of embeddings; None: the artifact offers none. dimensions: of the model.

    Raises: ConfigError for `auto` where the pretrained model says nothing, or what is not known here.
    """
    asked = config.export.embeddings
    if asked is None:
        return None
    if asked != "auto":
        return Embedding(pooling=asked, normalize=True, dimensions=dimensions)
    pooling, normalize = _published(config.model.name)
    return Embedding(pooling=pooling, normalize=normalize, dimensions=dimensions)


def _published(name: str) -> tuple[Pooling, bool]:
    """Of a folder of sentence-transformers: how it pools, and whether its vectors have length 1."""
    folder = expanded(name)
    try:
        modules = [str(module["type"]).rpartition(".")[2] for module in _read(folder / "modules.json", list[Any])]
        said = _read(folder / "1_Pooling/config.json", dict[str, Any])
    except (OSError, DocumentError, KeyError, TypeError) as error:
        raise ConfigError(f"--export.embeddings auto: {name} does not say how its tokens become one vector "
                          f"({' '.join(str(error).split())[:200]}): pass mean or cls") from error
    modes = [mode for mode, is_on in said.items() if mode.startswith("pooling_mode_") and is_on is True]
    if len(modes) != 1 or modes[0] not in _MODES or not {*modules} <= {*_MODULES}:
        raise ConfigError(f"--export.embeddings auto: {name} makes one vector by {', '.join([*modules, *modes])}, and "
                          "here only the mean of all tokens or the first one is taken: pass mean or cls")
    return _MODES[modes[0]], "Normalize" in modules


def _read(path: Path, kind: Any) -> Any:
    return parse_json(read_bounded(path, MOST_JSON_BYTES), kind)
