"""What the report shows of a text model: the worst mistakes, explained predictions and robustness,
or sampled continuations."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cluster.core.documents import JsonObject
from jobs.common.arrays import Array
from jobs.common.artifact.artifact import Artifact
from jobs.common.evaluation.metrics import Evaluation, worst_mistakes
from jobs.common.extras import EXPLANATIONS
from jobs.common.report import html, robustness
from jobs.common.report.attributions import TextAttribution, text_section
from jobs.common.report.html import Section
from jobs.common.training.job import EvaluationResult, TrainingResult
from jobs.transformer.chat.judging import Asked, asked_in, is_right, looked_up, token_f1
from jobs.transformer.preference.measures import warning_of
from jobs.transformer.preference.pairs import SIDES, from_text
from jobs.transformer.text.dataset_files import load_tokenizer, sample
from jobs.transformer.text.prepare import read_texts
from jobs.transformer.text.robustness import ABOUT

MOST_PARAMETERS = 300_000_000
"""A larger model is not run by the driver: its artifact can be asked to explain and to write,
where there is a machine for it."""
_BASELINE = "a text of nothing but padding"
_SHOWN_CHARACTERS = 300
_SHOWN_ANSWERS, _ANSWERED_AT_ONCE, _MOST_LOOKED_UP = 20, 64, 100_000


def classifier_sections(trained: TrainingResult, judged: Evaluation, made: Artifact,
                        perturbed: Mapping[str, Evaluation]) -> list[Section]:
    """Where it is asked for a comparison;
    mistakes, robustness, and as many test rows explained as the config asks for."""
    sections = _mistakes(trained)
    explained = _explained(trained, made) if _wants(trained, "explained_rows", EXPLANATIONS) else []
    if _wants(trained, "baseline", "the linear model"):
        from jobs.transformer import baseline

        sections.insert(0, baseline.section(judged, baseline.letters(trained)))
    if perturbed:
        sections.append(robustness.section(perturbed, about=ABOUT))
    return [*sections, *explained]


def _wants(trained: TrainingResult, option: str, extra: str) -> bool:
    """Whether the config asks for something beyond the metrics, and there is time for it."""
    return bool(getattr(trained.config.eval, option)) and trained.extras.begins(extra)


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
    return list(map(_cut, texts))


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
    if trained.config.task == "prefer":
        fall = warning_of(verdict.metrics["test"])
        return [*([html.section("Warning", f"In the test split {fall}.")] if fall else []), *wrong_pairs(trained)]
    rows = [[title, *(format(values[name], style) for values in verdict.metrics.values())]
            for name, (title, style) in shown.items() if name in verdict.metrics["test"]]
    sections = [html.section("How well it predicts", headings=["metric", *verdict.metrics], rows=rows)]
    if parameters_of(made) > MOST_PARAMETERS:
        return sections
    if trained.config.task == "chat":
        return sections + (_answers(trained, made) if _wants(trained, "answers", "answers") else [])
    return sections + ([_samples(trained, made)] if _wants(trained, "samples", "sampled continuations") else [])


def wrong_pairs(trained: TrainingResult) -> list[Section]:
    """Test pairs whose rejected answer has gained most, compared with the chosen one."""
    kept = sample(trained.dataset)
    values = trained.predictions("test").probabilities.astype(np.float64)[kept.positions]
    gained = values[:, :2] - values[:, 2:]
    margins = trained.config.prefer.beta * (gained[:, 0] - gained[:, 1])
    worst = [place for place in np.argsort(margins, kind="stable")[:_SHOWN_ANSWERS].tolist() if margins[place] < 0]
    if not worst:
        return []
    pairs = [from_text(kept.texts[place]).sides for place in worst]
    rows = [(_said_in(sides[0].messages[:-1]), [*(_cut(side.messages[-1]["content"]) for side in sides),
                                                f"{margins[place]:.3f}"])
            for place, sides in zip(worst, pairs, strict=True)]
    intro = (f"Of {len(margins):,} pairs of the test split those whose rejected answer has the higher implicit reward, "
             "the surest first.")
    return [Section("Worst mistakes", html.render("answers.html", "jobs.transformer", intro=intro, rows=rows,
                                                  names=[*SIDES, "margin"]))]


def _said_in(messages: Sequence[JsonObject]) -> list[tuple[str, str]]:
    """Who says what."""
    return [(message["role"], _cut(message["content"])) for message in messages]


def _answers(trained: TrainingResult, made: Artifact) -> list[Section]:
    """What the model, and others, say in held-out conversations."""
    from jobs.transformer.model import LanguageModel, load

    asked = asked_in(sample(trained.dataset).texts[:trained.config.eval.answers])
    model = load(made.store.location())
    assert isinstance(model, LanguageModel)
    if not asked:
        return []
    most = trained.config.eval.sample_tokens
    said = {"this model": _said_by(model, asked, most)}
    if trained.config.model.starts_pretrained:
        from jobs.transformer.build import build_model

        base = replace(trained.config, model=trained.config.model.whole)
        untrained = build_model(base, trained.dataset.details, ())
        said["before training"] = _said_by(LanguageModel(untrained, model.tokenizer, model.start_id, model.end_id),
                                           asked, most)
    known = asked_in(read_texts(trained.config).of_split("train"))
    if 0 < len(known) <= _MOST_LOOKED_UP:
        said["look-up"] = looked_up(known, asked)
    judged = [(name, f"{np.mean([is_right(*pair) for pair in pairs]):.1%}",
               f"{np.mean([token_f1(*pair) for pair in pairs]):.3f}") for name, answers in said.items()
              for pairs in [list(zip(answers, [each.reference for each in asked], strict=True))]]
    intro = (f"The last answers in {len(asked):,} test conversations, word for word (exact), and by the words that "
             "they have in common with the reference (F1). The look-up gives the answer to the training question that "
             "is most like the one asked, by the TF-IDF of its words.")
    rows = [(_said_in(each.before.messages), [_cut(each.reference), *(
        _cut(answers[place]) + " ✓" * is_right(answers[place], each.reference) for answers in said.values())])
            for place, each in enumerate(asked[:_SHOWN_ANSWERS])]
    shown = html.render("answers.html", "jobs.transformer", names=["reference", *said], rows=rows,
                        intro="The first of them, as the likeliest tokens have it; ✓: word for word.")
    return [html.section("How well it answers", intro, ["who", "exact", "F1"], judged), Section("Answers", shown)]


def _said_by(model: Any, asked: Sequence[Asked], most: int) -> list[str]:
    """model: a LanguageModel. In batches of like lengths."""
    order = sorted(range(len(asked)), key=lambda place: len(asked[place].question))
    said = [""] * len(asked)
    for start in range(0, len(order), _ANSWERED_AT_ONCE):
        some = order[start : start + _ANSWERED_AT_ONCE]
        for place, text in zip(some, model.answers([asked[place].before for place in some], most), strict=True):
            said[place] = text
    return said


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


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
