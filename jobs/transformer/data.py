"""What goes into the Transformer and what comes out. Imports no torch."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from cluster.core.auth import expanded
from cluster.core.errors import TrainingFailedError
from jobs.common.artifact.artifact import Artifact, Probe
from jobs.common.artifact.drift_reference import Reference, answer_features
from jobs.common.artifact.manifest import Description, Embedding
from jobs.common.artifact.tensor_spec import TensorSpec
from jobs.common.config import to_dict
from jobs.common.data.dataset import SPLITS
from jobs.common.declared_metrics import Metric, classification, primary_of
from jobs.common.evaluation.classification import judge, judge_split, probe_rows
from jobs.common.evaluation.metrics import Evaluation
from jobs.common.extras import of_changed_rows
from jobs.common.training.job import EvaluationResult, TrainingResult, require_package
from jobs.transformer.config import TransformerConfig
from jobs.transformer.embedding.pooling import embedding_of
from jobs.transformer.preference.measures import metrics_of, sums_of
from jobs.transformer.text.config import OF_CONVERSATIONS, Task
from jobs.transformer.text.dataset_files import load_tokenizer, sample, tokenizer_files
from jobs.transformer.text.features import TextFeatures
from jobs.transformer.text.text_rule import TextRule
from jobs.transformer.weights.base import base_of
from jobs.transformer.weights.pretrained import check_base, check_weights

HOW_TO_CLASSIFY = """from jobs.transformer.model import load
probabilities = load("ARTIFACT").predict(["a text", "another"])
# or transformers' AutoModelForSequenceClassification.from_pretrained("ARTIFACT/model")"""
HOW_TO_CHAT = """from jobs.transformer.model import load
text = load("ARTIFACT").answer([{"role": "user", "content": "Hello"}])
# or transformers' AutoModelForCausalLM.from_pretrained("ARTIFACT/model"), whose tokenizer has the chat template"""
HOW_TO_GENERATE = """from jobs.transformer.model import load
text = load("ARTIFACT").generate("Once upon a time")
# or transformers' AutoModelForCausalLM.from_pretrained("ARTIFACT/model")"""
WITH_PEFT = "  # which needs peft, and the base where it was"

_HOW_TO_LOAD: dict[Task, str] = {"classify": HOW_TO_CLASSIFY, "generate": HOW_TO_GENERATE, "chat": HOW_TO_CHAT,
                                 "prefer": HOW_TO_CHAT}

LANGUAGE = (Metric("loss", "min", unit="nats a token", primary=True, while_training="loss"),
            Metric("perplexity", "min"), Metric("bits_per_byte", "min"))

ANSWERS = LANGUAGE[:2]
"""To chat: of the tokens that are learnt, which no count of bytes goes with."""

PREFERENCES = (Metric("loss", "min", unit="nats a pair", primary=True, while_training="loss"),
               Metric("accuracy", "max", "accuracy of the implicit reward", while_training="accuracy"),
               Metric("margin", "max", "margin of the implicit reward", while_training="margin"),
               Metric("kl", "min", "KL to the reference", unit="nats an answer", while_training="kl"),
               Metric("logps_chosen", "max", "log-probability of chosen answers", while_training="logps_chosen"),
               Metric("reference_logps_chosen", "max", "… by the reference"),
               Metric("logps_rejected", "min", "log-probability of rejected answers",
                      while_training="logps_rejected"),
               Metric("reference_logps_rejected", "min", "… by the reference"))
"""To prefer: see preference/measures.py."""
_DECLARED: dict[Task, Sequence[Metric]] = {"generate": LANGUAGE, "chat": ANSWERS, "prefer": PREFERENCES}


def metrics(config: TransformerConfig) -> Sequence[Metric]:
    """What evaluations of the config's task report."""
    if config.task != "classify":
        return _DECLARED[config.task]
    return [replace(each, while_training="macro_f1") if each.name == "macro_f1" else each
            for each in classification(config.eval.top_k)]


# ── judging ──
def verdict_of(trained: TrainingResult) -> EvaluationResult:
    """How good the model is, from the workers' predictions."""
    return _of_classes(trained) if trained.config.task == "classify" else _of_tokens(trained)


def _of_classes(trained: TrainingResult) -> EvaluationResult:
    shown, count = sample(trained.dataset), probe_rows(trained)
    verdict = judge(trained, {"text": np.array(shown.texts[:count], dtype=object)}, shown.positions[:count])
    features = TextFeatures(load_tokenizer(trained.dataset).backend_tokenizer.to_str())(shown.texts)
    answered = trained.predictions("test").probabilities[shown.positions]
    return replace(verdict, reference=Reference.of({**features, **answer_features({"probabilities": answered})},
                                                   answered.shape[1]))


def _of_tokens(trained: TrainingResult) -> EvaluationResult:
    prefers = trained.config.task == "prefer"
    measure = _preference_metrics if prefers else _language_metrics
    metrics = {split: measure(trained, split) for split in SPLITS[1:]
               if trained.dataset.splits[split].num_rows}
    if not all(math.isfinite(value) for of_split in metrics.values() for value in of_split.values()):
        raise TrainingFailedError("the model's losses on validation or test rows are not finite: look at the training "
                                  "loss for signs of divergence (--optim.lr)")
    first = trained.predictions("test")
    rows = trained.rows("test", np.arange(probe_rows(trained)))
    inputs = {name: rows[name] for name in ("tokens", "marks") if name in rows}
    likelihood = first.probabilities[: len(rows["tokens"]), 0]
    if prefers:
        inputs, likelihood = {name: sides[:, 0] for name, sides in inputs.items()}, -likelihood
    return EvaluationResult(
        metrics=metrics,
        probe=Probe(inputs=inputs, outputs={"negative_log_likelihood": likelihood}),
    )


def _language_metrics(trained: TrainingResult, split: str) -> dict[str, float]:
    """loss in nats a target token; perplexity exp(loss); bits a byte of the UTF-8 text, whatever the tokens are, where
    all of it is to be predicted."""
    rows = trained.predictions(split)
    total, targets = float(rows.probabilities.astype(np.float64).sum()), int(rows.labels.sum())
    loss = total / targets
    bits = {"bits_per_byte": total / math.log(2) / trained.dataset.details["bytes"][split]}
    known = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "targets": float(targets)}
    return known | bits if trained.config.task == "generate" else known


def _preference_metrics(trained: TrainingResult, split: str) -> dict[str, float]:
    rows = trained.predictions(split)
    return metrics_of(sums_of(rows.probabilities, rows.labels, trained.config.prefer).tolist())


# ── the artifact ──
def describe(trained: TrainingResult, verdict: EvaluationResult) -> Description:
    """The artifact's manifest."""
    config, dataset = trained.config, trained.dataset
    classify = config.task == "classify"
    about = dataset.details
    base = base_of(config.model) if config.exports_adapter else None
    width = about["max_length"] + 1
    marks = [TensorSpec(name="marks", datatype="UINT8", shape=(-1, width))]
    packed = (TensorSpec(name="tokens", datatype="INT32", shape=(-1, width)),
              *(marks if config.task in OF_CONVERSATIONS else ()))
    return Description(
        job=trained.job, task="text-classification" if classify else "text-generation",
        inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1,)),) if classify else packed,
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, len(dataset.class_names))) if classify
                 else TensorSpec(name="negative_log_likelihood", datatype="FP32", shape=(-1,)),),
        labels=dataset.class_names,
        preprocessing={"text": config.data.rule.to_dict(), **{
            name: about[name] for name in ("max_length", "pad_id", "start_id", "end_id", "tokenizer_sha256")}},
        metrics=verdict.metrics, primary_metric=primary_of(metrics(config), verdict.metrics["test"]).name,
        config=to_dict(config),
        data=dataset.describe(),
        about=f"{config.model.origin}, a Transformer that "
              + (f"tells {len(dataset.class_names)} classes of texts apart." if classify
                 else "says which token comes next." if config.task == "generate" else "answers in conversations.")
              + (" Here are the updates of low rank to its weights." if base else ""),
        limits=(("It knows only the classes that it was trained on, and answers with one of them whatever it reads.",
                 f"Texts are cut to {about['max_length']} tokens.") if classify
                else ("What it writes is likely text, not truth.",))
        + ((f"It is no model by itself: it is put onto {base.name}, whose weights have the digest {base.digest}.",)
           if base else ())
        + (("Texts are cleaned first, as the manifest's preprocessing says: what reads model/ by itself has to do so, "
            "too.",) if config.data.rule != TextRule() else ()),
        how_to_load=_HOW_TO_LOAD[config.task] + (WITH_PEFT if base else ""), base=base,
        embedding=_embedding(trained),
    )


def _embedding(trained: TrainingResult) -> Embedding | None:
    if trained.config.export.embeddings is None:
        return None
    from jobs.transformer.build import skeleton  # imports torch

    model = skeleton(trained.config, trained.dataset.details, trained.dataset.class_names)
    return embedding_of(trained.config, int(model.config.hidden_size))


def files(trained: TrainingResult) -> dict[str, bytes | Callable[[], Iterable[bytes | memoryview]]]:
    """The artifact's model/, as `from_pretrained` reads it: config, tokenizer, and weights in files of at most 5 GB."""
    from jobs.transformer.export import hugging_face_files  # imports torch

    named = {**hugging_face_files(trained), **tokenizer_files(trained.dataset)}
    return {f"model/{name}": content for name, content in named.items()}


# ── the report ──
def sections(trained: TrainingResult, verdict: EvaluationResult, made: Artifact) -> Sequence[object]:
    """What the report shows of a text model beside what all have."""
    from jobs.transformer.pages import classifier_sections, generator_sections

    if trained.config.task == "classify":
        return classifier_sections(trained, verdict.evaluations["test"], made, _robustness(trained))
    return generator_sections(trained, verdict, made)


def _robustness(trained: TrainingResult) -> dict[str, Evaluation]:
    """An evaluation by perturbation of the sample's texts, the untouched ones first."""
    from jobs.transformer.text.robustness import PERTURBATIONS

    names = [name for name in ("untouched", *PERTURBATIONS) if trained.extras.has(of_changed_rows(name))]
    if not trained.config.eval.robustness_rows or len(names) < 2:
        return {}
    return {name: judge_split(trained, trained.predictions(of_changed_rows(name))) for name in names}


def check(config: TransformerConfig) -> None:
    """Raises: ConfigError for a package that is not installed, or a pretrained model's folder that would run code."""
    for package in ("torch", "transformers"):
        require_package(package, "transformer")
    if config.model.lora_rank:
        require_package("peft", "transformer")
    if config.model.lora_base:
        require_package("bitsandbytes", "four-bits")
    if config.scale.capabilities.zero_stage:
        require_package("deepspeed", "transformer")
    if not config.model.is_preset and config.model.init_from is None and expanded(config.model.name).is_dir():
        check_base(config.model.name)
        if config.model.pretrained:
            check_weights(config.model.name)
    embedding_of(config, 0)  # what it cannot say is said before training
