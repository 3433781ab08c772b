"""The report: self-contained, escaped, small, quick, complete, and drawn by a real browser where one is installed."""

import html.parser
import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import escape
from PIL import Image

from cluster.core.storage import Store
from jobs.common.declared_metrics import classification
from jobs.common.evaluation.metrics import Mistakes, evaluate, worst_mistakes
from jobs.common.formatting import shown
from jobs.common.report import charts as plots
from jobs.common.report.html import Section, section
from jobs.common.report.html import render as render_template
from jobs.common.report.images import data_uri
from jobs.common.report.run_report import ReportContent, RunFacts, render, write_report

EVIL = "<script>alert('x')</script>\"&$_{%"


def a_classifier(rows, classes, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 4
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32), labels


def content(classes=10, rows=500, names=None, side=28, **changes):
    probabilities, labels = a_classifier(rows, classes)
    names = names or [f"class {k}" for k in range(classes)]
    test = evaluate(probabilities, labels, names, top_k=3, bootstrap_samples=200)
    worst = worst_mistakes(probabilities, labels)
    images = np.random.default_rng(0).integers(0, 256, (len(worst), side, side, 3), dtype=np.uint8)
    predicted = probabilities[worst].argmax(axis=1)
    history = [{"kind": "train", "step": s, "epoch": 0, "train_loss": 100 / s, "learning_rate": 0.1}
               for s in range(1, 2000)]
    history += [{"kind": "evaluation", "step": s, "validation_accuracy": 0.9, "validation_loss": 1.0}
                for s in (500, 1000)]
    fields = {
        "title": "digits at night",
        "run": RunFacts(name="night", status="done", started=0.0, duration_s=3725, restarts=2, lost_steps=14,
                        skipped_steps=3,
                        goodput=0.91, samples_per_s=53210.4, recovery_s=(2.0, 3.5, 9.0),
                        events=("00:01 worker 2 was killed", "00:02 checkpoint 7 is damaged")),
        "evaluations": {"validation": test, "test": test}, "history": history,
        "metrics": {"validation": test.scalars(), "test": test.scalars()}, "declared": classification(3),
        "chosen": "The model is the checkpoint of step 1,500.",
        "mistakes": Mistakes(images=images, labels=labels[worst], predictions=predicted,
                             confidences=probabilities[worst, predicted]),
        "config": {"optim.lr": 0.001, "data.uri": "s3://key:hush@bucket/x"},
        "data": {"fingerprint": "f00d" * 16, "rows": {"train": 900}, "classes": names,
                 "class_counts": {"train": [90] * classes, "test": [10] * classes}},
        "environment": {"python": "3.11.7", "libraries": {"numpy": "2.4.6"}}, "artifact": "/runs/night/artifact",
        "sections": [section("Tokens", "12 tokens a row")],
    }
    return ReportContent(**fields | changes)


class Reader(html.parser.HTMLParser):
    """Tags, attributes and text of a document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def document():
    return render(content())


def test_it_shows_all_that_a_run_has_to_tell(document):
    text = Reader(document).text
    expected = [
        "digits at night", "run night", "1 h 2 min", "/runs/night/artifact", "Summary", "test accuracy", "95% interval",
        "macro-F1", "top-3 accuracy", "validation", "Training", "Loss", "Learning rate", "Scores: validation accuracy",
        "The model is the checkpoint of step 1,500.", "The training loss is", "53,210", "3.5 s each",
        "ROC and calibration (test)",
        "Reliability", "Confusion matrix", "precision", "Worst mistakes", "taken for", "Tokens", "12 tokens a row",
        "How the run went", "worker 2 was killed", "checkpoint 7 is damaged", "91.00%", "f00df00d",
        "Rows by class and split",
        "optim.lr", "0.001", "libraries.numpy", "2.4.6",
    ]
    assert [words for words in expected if words not in text] == []


def test_its_figures_are_those_of_the_evaluation(document):
    evaluation = content().evaluations["test"]
    text = Reader(document).text
    for value in (evaluation.macro_f1, evaluation.log_loss, evaluation.auc_macro, evaluation.balanced_accuracy):
        assert f"{value:.4f}" in text
    assert f"{evaluation.accuracy:.4f}" in text
    assert f"{evaluation.classes[3].precision:.4f}" in text


def test_it_needs_nothing_from_outside_and_runs_nothing(document):
    reader = Reader(document)
    assert not {"script", "link", "iframe", "object"} & set(reader.tags)
    linking = ("src", "href", "xlink:href", "action", "data")
    outside = [value for _, name, value in reader.attributes if name in linking
               and not value.startswith(("data:", "#"))]
    assert outside == []
    assert not re.findall(r"url\((?!#)|@import", document)
    assert "default-src 'none'" in document


def test_identifiers_are_unique_so_that_no_chart_takes_anothers_parts(document):
    identifiers = [value for _, name, value in Reader(document).attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', document))
    assert {first or second for first, second in used} <= set(identifiers)


def test_no_text_of_the_users_becomes_markup():
    names = [EVIL, "_hidden", "$x^2$", "a" * 300]
    history = [{"step": 1, EVIL: 1.0, "$x^$ loss": 1.0}, {"step": 2, EVIL: 2.0, "_loss": 2.0}]
    hostile = content(classes=4, names=names, title=EVIL, config={EVIL: EVIL}, artifact=EVIL,
                      run=RunFacts(name=EVIL, status=EVIL, started=0, duration_s=1, events=(EVIL,)),
                      environment={EVIL: EVIL}, history=history)
    document = render(hostile)
    assert "script" not in Reader(document).tags
    assert "<script" not in document
    assert document.count(escape(EVIL)) > 10


def test_what_no_template_has_made_is_text():
    document = render_template("page.html", title=EVIL, sections=[Section(EVIL, EVIL)])
    assert "<script" not in document
    assert document.count(escape(EVIL)) == 5
    assert "<script" not in section("t", EVIL, [EVIL], [[EVIL, EVIL], [{EVIL: EVIL}, [EVIL]]]).html


def test_a_value_that_a_template_does_not_get_is_an_error():
    with pytest.raises(UndefinedError, match="sections"):
        render_template("page.html", title="t")


def test_passwords_in_addresses_are_not_shown(document):
    assert "hush" not in document and "s3://***@bucket/x" in document


def test_it_is_small_and_quick_with_a_long_history_and_large_pictures(tmp_path):
    history = [{"step": s, "train_loss": 1 / s, "samples_per_s": 5e4} for s in range(1, 100_000)]
    large = content(side=400, history=history)
    render(content())  # imports matplotlib
    began = time.process_time()
    write_report(Store.open(str(tmp_path)), "report.html", large)
    assert time.process_time() - began < 6  # about 1 s on an idle machine
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_a_thousand_classes_stay_readable():
    document = render(content(classes=1000, rows=3000))
    text = Reader(document).text
    assert len(document) < 1_500_000
    assert "The 50 worst of 1000 classes" in text and "Most frequent confusions" in text
    assert "The first 50 of 1000 classes" in text


def test_what_is_empty_is_left_out():
    bare = ReportContent(title="t", run=RunFacts(name="r", status="failed", started=0, duration_s=0.5))
    text = Reader(render(bare)).text
    assert "failed" in text and "No events" in text
    assert not re.search("Summary|Training|ROC|mistakes|Config|Environment", text)


def test_rows_of_one_class_have_a_report_too():
    probabilities, _ = a_classifier(50, 3)
    alone = evaluate(probabilities, np.zeros(50, int), ["a", "b", "c"], top_k=1, bootstrap_samples=100)
    both = content()
    text = Reader(render(content(evaluations={"test": alone}, mistakes=None, metrics={"test": alone.scalars()}))).text
    assert "AUC, macro" not in text and "log loss (nats)" in text
    text = Reader(render(content(metrics={"validation": both.metrics["test"], "test": alone.scalars()}))).text
    assert re.search(r"AUC, macro 0\.\d{4} –", text)


def test_a_perfect_model_has_no_mistakes_to_show():
    probabilities = np.eye(3, dtype=np.float32)
    perfect = evaluate(probabilities, np.arange(3), ["a", "b", "c"], top_k=1, bootstrap_samples=100)
    none = Mistakes(images=np.zeros((0, 8, 8, 1), np.uint8), labels=np.zeros(0, int), predictions=np.zeros(0, int),
                    confidences=np.zeros(0))
    text = (Reader(render(content(evaluations={"test": perfect}, mistakes=none,
                                  metrics={"test": perfect.scalars()}))).text)
    assert "test accuracy 1.0000 95% interval 0.4385 to 1.0000" in text and "Worst mistakes" not in text


def test_of_a_step_done_twice_the_last_value_is_drawn(monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "line_chart", lambda lines, **_: drawn.update(lines) or "")
    history = [{"step": 1, "train_loss": 5.0}, {"step": 2, "train_loss": 4.0}, {"step": 1, "train_loss": 3.0}]
    render(content(history=[*history, {"step": 3, "train_loss": float("nan")}]))
    assert drawn["train loss"] == ([1.0, 2.0], [3.0, 4.0])


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("steps_per_epoch", [1, 19])
def test_a_chart_of_few_epochs_begins_at_0_and_has_whole_numbers_and_points(epochs, steps_per_epoch):
    steps = [steps_per_epoch * epoch for epoch in range(1, epochs + 1)]
    drawn = plots.line_chart({"loss": (steps, [0.5] * epochs)}, x_label="step", name="loss")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", drawn)
    ticks = labels[: labels.index("step")]
    assert ticks[0] == "0" and len(ticks) >= 2 and all(tick.isdigit() for tick in ticks)
    assert len(re.findall(r'<use [^>]*style="fill: var\(--series-0\)', drawn)) == epochs


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (300, 200, 3), (8, 8, 2), (8, 8, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pictures_of_any_kind_can_be_shown(shape, dtype):
    image = (np.random.default_rng(0).random(shape) * (255 if dtype == np.uint8 else 1)).astype(dtype)
    assert data_uri(image).startswith(f"data:image/{'jpeg' if shape[0] > 64 else 'png'};base64,")


def test_values_are_short_for_people():
    assert [shown(v) for v in (None, True, 12345, 0.123456, {"a": 1}, [1, 2], "x" * 999)][:6] == [
        "–", "yes", "12,345", "0.1235", "a 1", "1, 2",
    ]
    assert len(shown("x" * 999)) == 300


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")


def browse(path, profile, *arguments):
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update",
             "--disable-sync", "--no-first-run", "--hide-scrollbars", f"--user-data-dir={profile}")
    line = [CHROMIUM, *quiet, *arguments, path.as_uri()]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout


@needs_chromium
def test_a_browser_shows_it_in_light_and_dark(tmp_path, document):
    path = tmp_path / "report.html"
    path.write_text(document)
    brightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        picture = tmp_path / f"{scheme}.png"
        browse(path, tmp_path / scheme, f"--blink-settings=preferredColorScheme={number}", f"--screenshot={picture}",
               "--window-size=1200,3000")
        pixels = np.asarray(Image.open(picture).convert("L"), float)
        assert pixels.std() > 10, "the page is blank"
        brightness[scheme] = np.median(pixels)
    assert brightness["dark"] < 60 < 200 < brightness["light"]


@needs_chromium
def test_a_browser_lays_it_out_on_a_narrow_screen_without_scrolling_sideways(tmp_path, document):
    (tmp_path / "report.html").write_text(document)
    measure = ("<iframe id=f src=report.html style='width:400px;height:3000px'></iframe><p "
               "id=p></p><script>onload=()=>{const "
               "d=document.getElementById('f').contentDocument;document.getElementById('p').textContent="
               "`${d.documentElement.scrollWidth} ${d.querySelectorAll('svg').length} ${d.title}`}</script>")
    frame = tmp_path / "frame.html"
    frame.write_text(measure)
    dom = browse(frame, tmp_path / "profile", "--dump-dom", "--allow-file-access-from-files",
                 "--virtual-time-budget=5000")
    width, charts, title = re.search(r'<p id="p">(\d+) (\d+) ([^<]*)</p>', dom).groups()
    assert int(width) <= 400
    assert int(charts) == 6
    assert title == "digits at night"
