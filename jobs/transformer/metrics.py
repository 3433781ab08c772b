"""What the evaluations of the two tasks report."""

from collections.abc import Sequence
from dataclasses import replace

from jobs.common.evaluation.declared import Metric, classification
from jobs.transformer.config import TransformerConfig

LANGUAGE = (Metric("loss", "min", unit="nats a token", primary=True, while_training="loss"),
            Metric("perplexity", "min"), Metric("bits_per_byte", "min"))


def metrics(config: TransformerConfig) -> Sequence[Metric]:
    """Those of the config's task."""
    if config.task == "generate":
        return LANGUAGE
    return [replace(each, while_training="macro_f1") if each.name == "macro_f1" else each
            for each in classification(config.eval.top_k)]
