"""Which model is trained, from which weights, and what of it the artifact holds."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jobs.common.config import OnResume, require
from jobs.common.start_config import StartConfig
from jobs.transformer.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class ModelConfig(StartConfig):
    """A Hugging Face model: pretrained, or an architecture of presets.py with random weights."""

    name: str = "tiny"
    """A preset trained from nothing (tiny, distilbert, llama-124m, llama-1b, …), a local folder, or a hub name."""
    layers: int | None = None
    """Of a preset: how many layers, where not its own number."""
    heads: int | None = None
    """Of a preset: how many attention heads."""
    width: int | None = None
    """Of a preset: the hidden size."""
    attention_window: int | None = None
    """Of `tiny`, to classify: tokens to each side that one attends to in each layer, few for n-grams; None: all."""
    pretrained: bool = True
    """Of a folder or hub name: False takes its architecture and tokenizer, with random weights."""
    dropout: float | None = None
    """Probability of every dropout of the model; None: the model's own."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """How attention is computed; `auto`: flash attention where the hardware and its package are there, else SDPA."""
    chat_template: str | None = None
    """To chat: a Jinja file, or chatml, llama-3, mistral, gemma or qwen; by default the tokenizer's own, of a preset
    chatml. To generate: the one that a chat model which is to begin with this one will have, whose tokens are kept
    free."""
    activation_checkpointing: bool = False
    """Computes activations again in the backward pass instead of keeping them: less memory, a third more time."""
    lora_rank: int | None = None
    """Trains low-rank updates of so many dimensions and leaves the rest as it is (LoRA); see `export.merge`."""
    lora_alpha: float = 16.0
    """The updates count alpha / rank times."""
    lora_layers: tuple[str, ...] = ()
    """Which layers have updates, by the last part of their names (q_proj v_proj); none named: all that are linear."""
    lora_dropout: float = 0.0
    """Probability of a dropout of what goes into the updates."""
    rslora: bool = False
    """The updates count alpha / sqrt(rank) times, which suits high ranks (Kalajdzievski 2023)."""
    dora: bool = False
    """A weight's columns get lengths of their own beside the updates, which turn them (DoRA, Liu et al. 2024)."""
    lora_base: Literal["nf4"] | None = None
    """How the layers under the updates are held: `nf4` rounds them to 4 bits (QLoRA, Dettmers et al. 2023), by the
    package bitsandbytes, and the artifact is of the rounded ones; None: as they are."""

    on_resume: ClassVar[dict[str, OnResume]] = {**StartConfig.on_resume, "activation_checkpointing": "rounds"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None:
            for name in ("name", "pretrained"):
                require(getattr(self, name) == getattr(ModelConfig, name), f"model.{name}", getattr(self, name),
                        "--model.init-from brings its own architecture and weights: leave one of the two out")
        require(not self.freeze or self.lora_rank is None, "model.freeze", self.freeze,
                "updates of low rank leave the whole model as it is: leave --model.lora-rank or this out")
        for name in ("layers", "heads", "width", "attention_window", "lora_rank"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"model.{name}", value, "must be at least 1")
        require(self.dropout is None or 0 <= self.dropout < 1, "model.dropout", self.dropout,
                "must be at least 0 and less than 1")
        for name in ("layers", "heads", "width"):
            require(getattr(self, name) is None or self.is_preset, f"model.{name}", getattr(self, name),
                    f"is for a preset ({', '.join(PRESETS)}); {self.origin} brings its own")
        require(0 <= self.lora_dropout < 1, "model.lora_dropout", self.lora_dropout,
                "must be at least 0 and less than 1")
        for name in ("lora_layers", "lora_dropout", "rslora", "dora", "lora_base"):
            require(not getattr(self, name) or self.lora_rank is not None, f"model.{name}", getattr(self, name),
                    "is for updates of low rank: pass --model.lora-rank, too")

    @property
    def whole(self) -> "ModelConfig":
        """The same model without updates of low rank."""
        return replace(self, lora_rank=None, lora_layers=(), lora_dropout=0.0, rslora=False, dora=False, lora_base=None)

    @property
    def is_preset(self) -> bool:
        return self.init_from is None and self.name in PRESETS

    @property
    def starts_pretrained(self) -> bool:
        return self.pretrained and not self.is_preset

    @property
    def origin(self) -> str:
        """What it is made of, as it was named: `init_from`, or else `name`."""
        return self.init_from or self.name


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What the artifact holds."""

    merge: bool = False
    """With `--model.lora-rank`: the artifact is a whole model, with the updates added to its weights. Else it has the
    updates alone, and names the model that they are of; where that began with random weights, it is always whole."""
    embeddings: Literal["auto", "mean", "cls"] | None = None
    """When classifying, by an encoder: the artifact offers a vector for each text, too, of its last layer. `mean`: of
    all tokens; `cls`: the first token's; each of length 1. `auto`: as the pretrained folder says in 1_Pooling."""
