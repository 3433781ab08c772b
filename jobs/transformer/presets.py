"""Architectures that are trained from nothing: Hugging Face configurations, and no weights."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A model's dimensions.

    `llama`: normalises before each block, rotary positions, a gated MLP. `modernbert`: the same, seeing both sides, a
    text's class from the mean of its tokens. `distilbert`: normalises after each block, learned positions.
    """

    family: Literal["llama", "modernbert", "distilbert"]
    layers: int
    heads: int
    kv_heads: int
    width: int
    mlp_width: int
    max_positions: int
    vocab_size: int | None = None
    """As published; None: the tokenizer's. Where a tokenizer is trained here, its size counts."""
    tied: bool = True
    """Whether input and output embeddings are one matrix."""
    dropout: float = 0.0
    window: int | None = None
    """Of `modernbert`: tokens to each side that a token attends to, in every layer; None: all."""
    rope_theta: float = 10_000.0

    def resized(self, layers: int | None, heads: int | None, width: int | None) -> "Preset":
        """With other dimensions; the MLP keeps its proportion to the width."""
        size = width or self.width
        count = heads or self.heads
        return replace(self, layers=layers or self.layers, heads=count, width=size,
                       mlp_width=self.mlp_width * size // self.width,
                       kv_heads=count if heads else self.kv_heads)

    def options(self, task: str) -> dict[str, object]:
        """`model_type` and the arguments of its Hugging Face configuration, without vocabulary,
        labels and special tokens."""
        if self.family == "distilbert":
            return {"model_type": "distilbert", "n_layers": self.layers, "n_heads": self.heads, "dim": self.width,
                    "hidden_dim": self.mlp_width, "max_position_embeddings": self.max_positions,
                    "dropout": self.dropout,
                    "attention_dropout": self.dropout, "seq_classif_dropout": self.dropout}
        if self.family == "modernbert":
            rope = {"rope_type": "default", "rope_theta": self.rope_theta}
            kind = "sliding_attention" if self.window else "full_attention"
            return {"model_type": "modernbert", "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                    "hidden_size": self.width, "intermediate_size": self.mlp_width,
                    "max_position_embeddings": self.max_positions,
                    "layer_types": [kind] * self.layers, "rope_parameters": {kind: rope},
                    "local_attention": 2 * (self.window or 64),
                    "classifier_pooling": "mean", "embedding_dropout": self.dropout, "mlp_dropout": self.dropout,
                    "classifier_dropout": self.dropout}
        return {"model_type": "llama", "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "num_key_value_heads": self.kv_heads, "hidden_size": self.width, "intermediate_size": self.mlp_width,
                "max_position_embeddings": self.max_positions, "tie_word_embeddings": self.tied,
                "attention_dropout": self.dropout,
                "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}}


_TINY_ENCODER = Preset(family="modernbert", layers=4, heads=4, kv_heads=4, width=128, mlp_width=256, max_positions=2048,
                       dropout=0.1)

PRESETS: dict[str, Preset] = {
    "tiny": Preset(family="llama", layers=4, heads=4, kv_heads=4, width=128, mlp_width=344, max_positions=2048),
    # https://huggingface.co/distilbert-base-uncased/blob/main/config.json
    "distilbert": Preset(family="distilbert", layers=6, heads=12, kv_heads=12, width=768, mlp_width=3072,
                         max_positions=512,
                         vocab_size=30522, dropout=0.1),
    # GPT-2 small's dimensions (Radford et al. 2019, table 2) with Llama's blocks
    "llama-124m": Preset(family="llama", layers=12, heads=12, kv_heads=12, width=768, mlp_width=2048,
                         max_positions=2048,
                         vocab_size=50304),
    # Llama 3.2 1B and Llama 3 8B (Grattafiori et al. 2024, table 3)
    "llama-1b": Preset(family="llama", layers=16, heads=32, kv_heads=8, width=2048, mlp_width=8192,
                       max_positions=131072,
                       vocab_size=128256, rope_theta=500_000.0),
    "llama-8b": Preset(family="llama", layers=32, heads=32, kv_heads=8, width=4096, mlp_width=14336, max_positions=8192,
                       vocab_size=128256, tied=False, rope_theta=500_000.0),
}


def preset(name: str, task: str) -> Preset:
    """The preset of a name; `tiny` sees to both sides of a token when it classifies. Raises: KeyError."""
    return _TINY_ENCODER if name == "tiny" and task == "classify" else PRESETS[name]
