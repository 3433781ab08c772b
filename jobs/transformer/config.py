"""The Transformer job's config: the common groups with text, and its model, optimiser, strategy and hardware."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from jobs.common.config import Config, EvalConfig, OnResume, TrainConfig, require
from jobs.common.training.optim_config import ExtensionConfig, require_warmup
from jobs.transformer.chat.conversation import LossOn
from jobs.transformer.preference.config import PreferConfig
from jobs.transformer.strategies.table import STRATEGIES, Capabilities, Offload, StrategyName, those_that
from jobs.transformer.text.config import OF_CONVERSATIONS, Task, TextDataConfig
from jobs.transformer.weights.config import ExportConfig, ModelConfig

EMBEDDED: Mapping[Task, str] = {"classify": "languages", "generate": "stdlib", "chat": "questions"}
"""What is learnt where nobody names data; to prefer there is nothing."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig(ExtensionConfig):
    """AdamW and its schedule."""

    lr: float | None = None
    """Highest learning rate; by default 1e-3 for a model that starts from random weights, 5e-5 for pretrained ones, and
    2e-4 for updates of low rank to them. To prefer, where more unlearns what a model knows (Rafailov et al. 2023 have
    1e-6), 1e-6, and 5e-6 for updates of low rank."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of that mean."""
    weight_decay: float = 0.01
    """Decoupled; not of biases and norms."""
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """From the highest rate down to `final_lr` at the last step."""
    final_lr: float = 0.0
    """Learning rate of the last step."""
    warmup: float = 0.05
    """How long the rate rises from 0: below 1 a share of the run's steps, from 1 on a number of steps."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes, when classifying."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None: no clipping."""

    def __post_init__(self) -> None:
        require(self.lr is None or self.lr > 0, "optim.lr", self.lr, "must be more than 0")
        require(0 < self.beta2 < 1, "optim.beta2", self.beta2, "must be more than 0 and less than 1")
        require(self.eps > 0, "optim.eps", self.eps, "must be more than 0")
        require(self.final_lr >= 0 and (self.lr is None or self.final_lr <= self.lr), "optim.final_lr", self.final_lr,
                "must be from 0 to optim.lr")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must be 0 or more")
        require_warmup(self.warmup)
        require(0 <= self.label_smoothing < 1, "optim.label_smoothing", self.label_smoothing,
                "must be at least 0 and less than 1")
        require(self.clip_norm is None or self.clip_norm > 0, "optim.clip_norm", self.clip_norm, "must be more than 0")

    @property
    def highest_lr(self) -> float:
        """`lr`, which the whole config has put in if nobody else did."""
        assert self.lr is not None, "the default depends on the model: a TransformerConfig knows it"
        return self.lr

    def learning_rate(self, step: int, total_steps: int) -> float:
        """The rate of a step, counted from 0."""
        return self.scheduled(self.highest_lr, self.schedule, self.warmup, step, total_steps, self.final_lr)


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """How the model's state is spread over the workers."""

    strategy: StrategyName = "ddp"
    """`ddp`: all on each worker. DeepSpeed spreads the optimiser (`zero1`), gradients (`zero2`), weights (`zero3`)."""
    offload: Offload = "none"
    """Where the optimiser's state lies (zero1 to zero3): on the device, in the host's memory, on a disk (zero3)."""
    offload_parameters: bool = False
    """With zero3 and `--scale.offload cpu`: the weights lie there too."""
    offload_path: str | None = None
    """With `nvme`: a folder on the worker's own disk."""
    bucket_mb: float = 25.0
    """Gradients that are summed over the workers at a time, in 10^6 bytes."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """What `ddp` sends and sums gradients in: `bf16` is half as much, rounded to 8 significant bits."""
    deepspeed_json: str | None = None
    """A DeepSpeed config file whose fields are added; what contradicts an option here is refused."""

    on_resume: ClassVar[dict[str, OnResume]] = {"offload_path": "free"}

    def __post_init__(self) -> None:
        require(self.strategy in STRATEGIES, "scale.strategy", self.strategy, f"pass one of {', '.join(STRATEGIES)}")
        able = self.capabilities
        require(self.offload == "none" or len(able.offloads) > 1, "scale.offload", self.offload,
                f"needs --scale.strategy {those_that(lambda each: len(each.offloads) > 1)}")
        require(self.offload in able.offloads, "scale.offload", self.offload,
                f"a disk is used by --scale.strategy {those_that(lambda each: 'nvme' in each.offloads)} only: pass "
                "that, or --scale.offload cpu")
        require(self.offload != "nvme" or bool(self.offload_path), "scale.offload", self.offload,
                "needs --scale.offload-path, a folder on each worker's own disk")
        require(self.offload_path is None or self.offload == "nvme", "scale.offload_path", self.offload_path,
                "needs --scale.offload nvme")
        require(not self.offload_parameters or (able.offloads_parameters and self.offload == "cpu"),
                "scale.offload_parameters", self.offload_parameters,
                f"needs --scale.strategy {those_that(lambda each: each.offloads_parameters)} and --scale.offload cpu")
        require(self.deepspeed_json is None or able.zero_stage > 0, "scale.deepspeed_json", self.deepspeed_json,
                f"needs --scale.strategy {those_that(lambda each: each.zero_stage > 0)}")
        require(self.bucket_mb > 0, "scale.bucket_mb", self.bucket_mb, "must be more than 0")
        require(self.gradients == "fp32" or able.sends_bf16, "scale.gradients", self.gradients,
                f"is for --scale.strategy {those_that(lambda each: each.sends_bf16)}; DeepSpeed's is "
                "communication_data_type, by --scale.deepspeed-json")

    @property
    def capabilities(self) -> Capabilities:
        """What the strategy is able to do."""
        return STRATEGIES[self.strategy]


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """How the arithmetic is done."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """`bf16`: products in bfloat16, the optimiser's state in float32. `fp16`: with loss scaling, on GPUs only."""
    compile: bool = False
    """torch.compile: slow to start, faster after; with `ddp` only."""
    peak_tflops: float | None = None
    """Dense peak of a worker's device in 10^12 FLOP/s, for the MFU; by default from a table of GPUs."""

    on_resume: ClassVar[dict[str, OnResume]] = {"peak_tflops": "free"}

    def __post_init__(self) -> None:
        require(self.peak_tflops is None or self.peak_tflops > 0, "hardware.peak_tflops", self.peak_tflops,
                "must be more than 0")


@dataclass(frozen=True, kw_only=True)
class TextTrainConfig(TrainConfig):
    """How long, and in what batches."""

    epochs: int = 3
    """Passes over the training rows."""
    global_batch_size: int = 32
    """Rows of one optimiser step over all workers; a multiple of the most workers."""
    evaluate_every_steps: int | None = None
    """Evaluates after so many steps, too, not only at an epoch's end."""
    loss_on: LossOn = "assistant"
    """To chat: the tokens that are learnt. `assistant`: what assistants say, with the ends of their turns; `last`: of
    their last turns only; `all`: whatever stands in a row."""
    mask_tokens: float = 0.0
    """When classifying: how many of a row's tokens are hidden on average, drawn from 0 to twice that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.mask_tokens <= 0.5, "train.mask_tokens", self.mask_tokens,
                "must be at least 0 and at most 0.5")
        require(self.evaluate_every_steps is None or self.evaluate_every_steps >= 1, "train.evaluate_every_steps",
                self.evaluate_every_steps, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TextEvalConfig(EvalConfig):
    """How a model is judged."""

    metric: Literal["auto", "accuracy", "loss"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Which validation metric chooses the best checkpoint; `auto`: accuracy to classify, loss otherwise."""
    batch_size: int = 64
    """Rows per forward pass, per worker."""
    robustness_rows: int = 500
    """When classifying: test rows judged again with typos, without case or accents, and shortened; 0: none."""
    explained_rows: int = 10
    """Test rows whose prediction the report explains, when classifying; 0: none."""
    baseline: bool = False
    """When classifying, fits a linear model on the letters of the training texts too, and the report compares both."""
    samples: int = 3
    """Continuations that the report shows, when generating."""
    sample_tokens: int = 120
    """Tokens of each, and of an answer."""
    answers: int = 200
    """To chat: test conversations whose last answer is compared with the model's, in the report; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("robustness_rows", "explained_rows", "samples", "answers"):
            require(getattr(self, name) >= 0, f"eval.{name}", getattr(self, name), "must be 0 or more")
        require(self.sample_tokens >= 1, "eval.sample_tokens", self.sample_tokens, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Config):
    """Trains or fine-tunes a Hugging Face Transformer on text."""

    task: Task = "classify"
    """`classify`: which class is this text? `generate`: which token comes next? `chat`: what does an assistant say?
    `prefer`: which of two answers is better (Direct Preference Optimisation)?"""
    data: TextDataConfig = field(default_factory=TextDataConfig)
    train: TextTrainConfig = field(default_factory=TextTrainConfig)
    eval: TextEvalConfig = field(default_factory=TextEvalConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    prefer: PreferConfig = field(default_factory=PreferConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim.lr is None:
            lr = 1e-3 if not self.model.starts_pretrained else 2e-4 if self.model.lora_rank else 5e-5
            if self.task == "prefer":
                lr = 5e-6 if self.model.lora_rank else 1e-6
            object.__setattr__(self, "optim", replace(self.optim, lr=lr))
        require(self.task != "prefer" or self.data.uri != "auto", "data.uri", "auto",
                "no pairs are embedded: to prefer pass your own data, with the columns chosen and rejected")
        if self.data.uri == "auto":
            object.__setattr__(self, "data", replace(self.data, uri=EMBEDDED[self.task]))
        require(self.task in ("classify", "prefer") or self.eval.metric != "accuracy", "eval.metric", self.eval.metric,
                "what is written is judged by its loss: pass loss or auto")
        for task, uri in EMBEDDED.items():
            require(self.task == task or self.data.uri != uri, "data.uri", self.data.uri,
                    f"is for --task {task}: to {self.task} pass " + (
                        f"--data.uri {EMBEDDED[self.task]}, or " if self.task in EMBEDDED else "") + "your own data")
        if self.task in OF_CONVERSATIONS:
            for name in ("chooses", "cleans"):
                option = getattr(self.data, name)
                require(option is None, f"data.{option}", getattr(self.data, option or "uri"),
                        "is for texts: conversations are learnt as they are")
        require(self.model.chat_template is None or self.task != "classify", "model.chat_template",
                self.model.chat_template, "is for models that write: --task chat, prefer or generate")
        require(self.model.init_from is None or self.data.tokenizer == "auto", "data.tokenizer", self.data.tokenizer,
                "--model.init-from brings its own tokenizer: leave the option out")
        require(self.data.form == "auto" or (self.data.form == "preference") == (self.task == "prefer"), "data.form",
                self.data.form, "is for --task chat" if self.task == "prefer" else "is for --task prefer")
        require(self.task == "prefer" or self.prefer == PreferConfig(), "prefer", self.prefer, "is for --task prefer")
        for name in ("form", "too_long"):
            require(self.task in OF_CONVERSATIONS or name not in {each.split()[0] for each in self.data.choices},
                    f"data.{name}", getattr(self.data, name), f"is for --task {' or '.join(OF_CONVERSATIONS)}")
        require(self.train.loss_on == "assistant" or self.task == "chat", "train.loss_on", self.train.loss_on,
                "is for --task chat")
        require(self.model.attention_window is None or (self.task == "classify" and self.model.name == "tiny"),
                "model.attention_window", self.model.attention_window, "is for --task classify with --model.name tiny")
        require(self.task == "classify" or not self.train.mask_tokens, "train.mask_tokens", self.train.mask_tokens,
                "is for --task classify")
        require(self.task == "classify" or self.data.tokenizer != "wordpiece", "data.tokenizer", "wordpiece",
                "it loses case and spaces, so it cannot give a text back: pass bpe, bytes or characters")
        require(self.task == "classify" or self.model.name != "distilbert", "model.name", self.model.name,
                "it sees both sides of a token, so it cannot generate: pass tiny or llama-124m")
        require(not self.export.merge or self.model.lora_rank is not None, "export.merge", self.export.merge,
                "is for updates of low rank: pass --model.lora-rank, too")
        require(self.task == "classify" or self.export.embeddings is None, "export.embeddings", self.export.embeddings,
                "is for --task classify, whose models see all of a text")
        require(self.export.embeddings != "auto" or self.model.starts_pretrained, "export.embeddings", "auto",
                "takes what a pretrained folder says: pass mean or cls")
        able = self.scale.capabilities
        require(self.run.exact == "same-workers" or able.any_workers, "run.exact", self.run.exact,
                "DeepSpeed adds gradients up in an order that depends on the number of workers: pass --scale.strategy "
                f"{those_that(lambda each: each.any_workers)}")
        require(self.run.exact == "same-workers" or self.scale.gradients == "fp32", "run.exact", self.run.exact,
                "sends each shard's gradients as they are: leave out --scale.gradients bf16")
        require(self.hardware.precision != "fp16" or able.scales_loss, "hardware.precision", "fp16",
                "fp16 needs its loss scaled, which DeepSpeed does: pass --scale.strategy "
                f"{those_that(lambda each: each.scales_loss)}, or bf16")
        require(self.hardware.precision != "fp16" or self.run.gpus_per_worker > 0, "hardware.precision", "fp16",
                "fp16 needs a GPU: pass bf16 or fp32, or --run.gpus-per-worker 1")
        require(not self.hardware.compile or able.compiles, "hardware.compile", self.hardware.compile,
                f"torch.compile is tried with --scale.strategy {those_that(lambda each: each.compiles)} only, not with "
                f"{self.scale.strategy}")
        require(self.model.lora_base is None or able.packs, "model.lora_base", self.model.lora_base,
                "what is spread over workers is not packed: pass --scale.strategy "
                f"{those_that(lambda each: each.packs)}")
        require(self.model.attention != "flash_attention_2" or (
            self.run.gpus_per_worker > 0 and self.hardware.precision != "fp32"), "model.attention", "flash_attention_2",
            "flash attention needs a GPU and bf16 or fp16: pass sdpa")

    @property
    def exports_adapter(self) -> bool:
        """Whether the artifact has updates of low rank alone."""
        return self.model.lora_rank is not None and self.model.starts_pretrained and not self.export.merge

    @property
    def differs_by_pass(self) -> str:
        drawn = self.model.dropout != 0 or self.model.lora_dropout or self.train.mask_tokens
        return "dropout, or tokens that are hidden" if drawn else ""

    def less_memory(self, *, anew: bool) -> list[str]:
        """See Config; what each needs, `python -m jobs.transformer.plan` says."""
        if not anew:
            return [] if self.model.activation_checkpointing else ["--model.activation-checkpointing"]
        spread = ["--scale.strategy zero3 on more workers"] if self.scale.strategy != "zero3" else []
        if self.model.starts_pretrained and self.model.lora_base is None:
            spread += ["--model.lora-rank 16" if self.model.lora_rank is None else "--model.lora-base nf4"]
        return [*spread, *super().less_memory(anew=True)]

    @property
    def metric(self) -> str:
        """Which validation metric chooses the best checkpoint: `accuracy` or `loss`."""
        default = "accuracy" if self.task == "classify" else "loss"
        return default if self.eval.metric == "auto" else self.eval.metric
