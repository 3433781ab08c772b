"""What the report shows of a text model: the worst mistakes, explained predictions and robustness,
or sampled continuations."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.evaluation.metrics import Evaluation, worst_mistakes
from jobs.common.report import html, robustness
from jobs.common.report.attributions import TextAttribution, text_section
from jobs.common.report.html import Section
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.transformer.text.dataset_files import load_tokenizer, sample
from jobs.transformer.text.robustness import ABOUT

MOST_PARAMETERS = 300_000_000
"""A larger model is not run by the driver: its artifact can be asked to explain and to write,
where there is a machine for it."""
_BASELINE = "a text of nothing but padding"
_SHOWN_CHARACTERS = 300


def classifier_sections(trained: TrainingResult, judged: Evaluation, made: Artifact,
                        perturbed: Mapping[str, Evaluation]) -> list[Section]:
    """Where it is asked for a comparison;
    mistakes, robustness, and as many test rows explained as the config asks for."""
    sections = _mistakes(trained)
    if trained.config.eval.baseline:
        from jobs.transformer import baseline

        sections.insert(0, baseline.section(judged, baseline.letters(trained)))
    if perturbed:
        sections.append(robustness.section(perturbed, about=ABOUT))
    if trained.config.eval.explained_rows:
        sections += _explained(trained, made)
    return sections


def _mistakes(trained: TrainingResult) -> list[Section]:
    test, names = trained.predictions("test"), trained.dataset.class_names
    worst = worst_mistakes(test.probabilities, test.labels)
    if not len(worst):
        return []
    texts = decoded(trained, worst)
    said = test.probabilities[worst].argmax(1)
    rows = [(text, names[label], names[k], f"{test.probabilities[i, k]:.1%}")
            for text, label, k, i in zip(texts, test.labels[worst].tolist(), said.tolist(), worst.tolist(),
                                         strict=True)]
    intro = "Rows of the test split that the model got wrong with the greatest confidence, as its tokenizer has them."
    return [html.section("Worst mistakes", intro, ["text", "true class", "predicted class", "sure"], rows)]


def decoded(trained: TrainingResult, positions: Array) -> list[str]:
    """Test rows as text again, as far as the tokenizer keeps it."""
    tokenizer = load_tokenizer(trained.dataset)
    rows = trained.rows("test", positions)
    texts = tokenizer.batch_decode([tokens[:length].tolist() for tokens, length in zip(
        rows["tokens"], rows["length"].tolist(), strict=True)], skip_special_tokens=True)
    return [text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…" for text in texts]


def _explained(trained: TrainingResult, made: Artifact) -> list[Section]:
    if (size := parameters_of(made)) > MOST_PARAMETERS:
        return [html.section("Explained predictions",
                             f"The model has {size / 1e6:,.0f} million parameters, too many for "
                             "the driver: load the artifact on a worker's machine, and call explain.")]
    from jobs.transformer.model import Classifier, load

    model = load(made.store.location())
    assert isinstance(model, Classifier)
    shown, test = sample(trained.dataset), trained.predictions("test")
    probabilities = test.probabilities[shown.positions]
    chosen = explained_rows(probabilities, shown.labels, trained.config.eval.explained_rows)
    names = trained.dataset.class_names
    rows = [TextAttribution(label=names[int(shown.labels[i])], predicted=names[e.predicted], gap=e.gap, tokens=e.pieces,
                            confidence=float(probabilities[i].max()), attributions=np.array(e.attributions))
            for i, e in zip(chosen, model.explain([shown.texts[i] for i in chosen]), strict=True)]
    return [text_section(rows, baseline=_BASELINE)]


def explained_rows(probabilities: Array, labels: Array, count: int) -> list[int]:
    """Positions: half of them the worst mistakes, if there are so many, the others the first that are right."""
    wrong = worst_mistakes(probabilities, labels, count // 2).tolist()
    right = np.flatnonzero(probabilities.argmax(1) == labels)[: count - len(wrong)].tolist()
    return [*right, *wrong]


def parameters_of(made: Artifact) -> int:
    """Of a float32 model, with those of an adapter's base."""
    base = made.manifest.description.base
    own = sum(entry.size for entry in made.manifest.files if entry.path.endswith(".safetensors"))
    return (own + (base.size_bytes if base else 0)) // 4


# ── generating ──
def generator_sections(trained: TrainingResult, verdict: EvaluationResult, made: Artifact) -> list[Section]:
    """The figures, and continuations of the beginnings of test documents."""
    shown = {"loss": ("loss, nats a token", ".4f"), "perplexity": ("perplexity", ",.3f"),
             "bits_per_byte": ("bits per byte", ".4f"),
             "targets": ("tokens predicted", ",.0f")}
    rows = [[title, *(format(values[name], style) for values in verdict.metrics.values())]
            for name, (title, style) in shown.items()]
    sections = [html.section("How well it predicts", headings=["metric", *verdict.metrics], rows=rows)]
    if trained.config.eval.samples and parameters_of(made) <= MOST_PARAMETERS:
        sections.append(_samples(trained, made))
    return sections


def _samples(trained: TrainingResult, made: Artifact) -> Section:
    from jobs.transformer.model import LanguageModel, load

    model = load(made.store.location())
    assert isinstance(model, LanguageModel)
    samples = [(prompt, model.generate(prompt, trained.config.eval.sample_tokens, seed=i))
               for i, prompt in enumerate(prompts(trained, model.tokenizer))]
    return Section("Sampled continuations", html.render("samples.html", "jobs.transformer", samples=samples))


def prompts(trained: TrainingResult, tokenizer: Any) -> Sequence[str]:
    """The first tokens of rows spread over the test split."""
    total, count = trained.dataset.splits["test"].num_rows, trained.config.eval.samples
    length = max(4, min(24, trained.config.data.max_length // 4))
    rows = trained.rows("test", np.unique(np.linspace(0, total - 1, count).astype(np.int64)))["tokens"]
    return [tokenizer.decode([t for t in tokens[:length].tolist() if t >= 0], skip_special_tokens=True)
            for tokens in rows]
