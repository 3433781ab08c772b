"""What a storage holds, on one page and in lists, and which of it may be deleted."""

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from cluster.core.storage import Store
from jobs.common import config as configs
from jobs.common.config import COMPARISONS_FOLDER, PREPARED_FOLDER, RunConfig
from jobs.common.execution.run_state import RunState
from jobs.common.predicting.evaluate import main as evaluate
from jobs.common.predicting.predict import main as predict
from jobs.common.registry.registry import CHAMPION, ModelVersion
from jobs.common.runs.__main__ import main
from jobs.common.runs.index_page import keep_index, write_index
from jobs.common.runs.overview import overview, way
from jobs.common.runs.run_folder import RunFolder
from jobs.common.runs.run_lock import locked
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.prepare import prepare
from jobs.mlp.config import MlpConfig
from tests import kept
from tests.browser import browser, needs_chromium
from tests.s3 import BUCKET

DAY_S = 24 * 3600.0
SCORES = {"accuracy": 0.9, "macro_f1": 0.8, "log_loss": 0.3}


def run(storage: Path | str, name: str, status: str | None = "done", *, accuracy: float = 0.9, age_days: float = 0.0,
        size: int = 1000, fingerprint: str = "f", job: str = "mlp", flags: tuple[str, ...] = ()) -> RunFolder:
    """As a driver leaves it. status: None of one whose driver was lost."""
    config = configs.parse(MlpConfig, ["--run.storage", str(storage), "--run.name", name, *flags], "test")
    folder = RunFolder.find(config).create(config, 1, {"fingerprint": fingerprint}, job=job)
    folder.store.write_text("report.html", "x" * size)
    if status:
        result = RunState.open(folder.store).result(status, 0 if status == "done" else 1, folder.attempt)
        folder.write_result(result | {"metrics": {"test": SCORES | {"accuracy": accuracy}}, "wall_s": 60.0,
                                      "steps": 1200})
    if age_days:
        then = time.time() - age_days * DAY_S
        for path in Path(folder.top.location()).rglob("*"):
            os.utime(path, (then, then))
    return folder


def search(storage: Path, name: str) -> None:
    store = Store.open(str(storage)).child(name)
    store.write_text("search.json", json.dumps({"hmac": "", "content": {"job": "cnn"}}))
    store.write_text("result.json", json.dumps({
        "status": "done", "exit_code": 0, "trials": {"completed": 3, "failed": 1}, "wall_s": 9.0,
        "objectives": {"validation_loss": "min"}, "best": {"evaluation": {"validation_loss": 0.25}}}))


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def left(storage: Path) -> set[str]:
    return {path.name for path in storage.iterdir() if path.is_dir() and not path.name.startswith(".")}


def test_each_run_and_search_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "good")
    run(tmp_path, "bad", "failed")
    run(tmp_path, "lost", None)
    run(tmp_path, "again", accuracy=0.1)
    run(tmp_path, "again", accuracy=0.7, flags=("--run.resume", "never"))
    run(tmp_path, "twice")
    run(tmp_path, "twice", "stopped", flags=("--run.resume", "never"))
    search(tmp_path, "found")
    (tmp_path / "no-run").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/run.json").write_text("{")
    by_name = {entry.name: entry for entry in overview(Store.open(str(tmp_path))).entries}
    assert {name: entry.status for name, entry in by_name.items()} == {
        "good": "done", "bad": "failed", "lost": "interrupted", "again": "done", "found": "done", "broken": "damaged",
        "twice": "stopped"}
    assert by_name["good"].scores == (("accuracy", 0.9), ("macro-F1", 0.8), ("log loss", 0.3))
    assert by_name["again"].scores[0] == ("accuracy", 0.7), "the newest attempt's"
    assert by_name["again"].pages == {"report": "again/attempts/2/report.html"}
    assert (by_name["found"].kind, by_name["found"].job, by_name["found"].steps) == ("search", "cnn", 4)
    assert by_name["found"].shown_scores == "validation loss 0.2500"
    assert by_name["good"].size == sum(path.stat().st_size for path in (tmp_path / "good").rglob("*") if path.is_file())
    where = ("--storage", str(tmp_path))
    code, text, _ = asked(capsys, "list", *where, "--job", "mlp", "--status", "done")
    assert code == 0 and [line.split()[0] for line in text.splitlines()] == ["NAME", "again", "good"]
    code, text, _ = asked(capsys, "show", "again", *where)
    assert code == 0 and f"report        {tmp_path}/again/attempts/2/report.html" in text
    assert "run.json is damaged" in asked(capsys, "show", "broken", *where)[1]
    code, _, error = asked(capsys, "show", "gone", *where)
    assert code == 2 and "no run 'gone'" in error


@contextmanager
def held(storage: Path, name: str) -> Iterator[None]:
    """By another thread, as a driver does."""
    there, over = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(Store.open(str(storage)), name):
            there.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    there.wait()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_run_that_is_running_or_a_champions_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--storage", str(tmp_path), "--tracking-uri", "none")
    for name in ("busy", "idle"):
        run(tmp_path, name, "stopped", age_days=9)
    with held(tmp_path, "busy"):
        assert "running" in asked(capsys, "list", *where, "--status", "running")[1]
        code, _, error = asked(capsys, "rm", "busy", *where, "--yes")
        assert code == 2 and "run 'busy' stays, since it is running" in error
        code, text, _ = asked(capsys, "prune", "--older-than", "1w", *where, "--yes")
        assert code == 0 and left(tmp_path) == {"busy"}, text
    champion = ModelVersion(name="digits", version="3", aliases=(CHAMPION,), run_id="r",
                            tags={"artifact": f"{tmp_path}/busy/artifact"})
    (entry,) = overview(Store.open(str(tmp_path)), [champion]).entries
    assert entry.registered == "digits 3 (champion)"
    from jobs.common.runs.prune import Limits, chosen, why_kept

    assert why_kept(entry) == "it made models:/digits@champion"
    assert chosen(overview(Store.open(str(tmp_path)), [champion]), Limits(keep=0), time.time()) == []


def test_limits_name_what_goes_and_nothing_goes_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--storage", str(tmp_path), "--tracking-uri", "none")
    for day, name in enumerate(("new", "week", "fortnight", "month")):
        run(tmp_path, name, "failed" if name == "week" else "done", age_days=(0, 8, 15, 31)[day], size=1_000_000)
    run(tmp_path, "other", age_days=60, size=1_000_000, job="cnn")

    def named(*limits: str) -> list[str]:
        code, text, _ = asked(capsys, "prune", *where, *limits)
        assert code == 0
        *lines, last = text.splitlines()
        assert not lines or "nothing was deleted; add --yes" in last
        return [line.partition(":")[0] for line in lines]

    assert named("--older-than", "2w") == ["other", "month", "fortnight"], "the oldest first"
    assert named("--older-than", "2w", "--status", "failed") == []
    assert named("--status", "failed") == ["week"]
    assert named("--keep", "1") == ["month", "fortnight", "week"], "of each job the newest stays"
    assert named("--to-size", "3MB") == ["other", "month", "fortnight"]
    assert named("--to-size", "5GB") == []
    assert left(tmp_path) == {"new", "week", "fortnight", "month", "other"}
    assert asked(capsys, "prune", "--to-size", "3MB", *where, "--yes")[1].endswith(" MB stay\n")
    assert left(tmp_path) == {"new", "week"}
    code, _, error = asked(capsys, "prune", *where)
    assert code == 2 and "say which runs may go" in error
    with pytest.raises(SystemExit):
        main(["prune", "--older-than", "2 weeks", *where])


def test_data_goes_that_no_run_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--storage", str(tmp_path), "--tracking-uri", "none", "--data")
    made = [prepare(ImageDataConfig(uri="digits", split_seed=seed), Store.open(str(tmp_path)), use_ray=False)
            for seed in (0, 1, 2)]
    run(tmp_path, "needs", fingerprint=made[0].fingerprint)
    for dataset in made[:2]:
        for path in Path(dataset.store.location()).rglob("*"):
            os.utime(path, (time.time() - 2 * DAY_S,) * 2)
    _, text, _ = asked(capsys, "prune", *where)
    assert f"prepared data {Path(made[1].store.location()).name}" in text and text.count("prepared data") == 1
    asked(capsys, "prune", *where, "--yes")
    there = {path.name for path in (tmp_path / PREPARED_FOLDER).iterdir()}
    assert there == {Path(made[k].store.location()).name for k in (0, 2)}, "one is new: a run may be about to begin"
    assert len(asked(capsys, "prune", *where, "--status", "done")[1].splitlines()) == 3, "its run goes, and it, too"


def test_on_an_object_store_it_is_the_same(s3: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = f"s3://{BUCKET}/{tmp_path.name}?endpoint_override={s3}"
    run(storage, "first")
    run(storage, "second", None)
    where = ("--storage", storage, "--tracking-uri", "none")
    code, text, _ = asked(capsys, "list", *where)
    assert code == 0 and [line.split()[3] for line in text.splitlines()[1:]] == ["running", "done"], \
        "nobody can lock there: what was written a moment ago may be going on"
    assert asked(capsys, "rm", "first", *where, "--yes")[0] == 0
    assert Store.open(storage).folders() == ["second"]
    assert Store.open(storage).read_text("index.html").count("<tr>") == 2


def test_a_page_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []
    keep_index(RunConfig(storage=str(tmp_path / "file")), said.append)
    assert len(said) == 1 and "`trainyard runs page` writes it" in said[0]


def test_the_end_of_a_run_reads_no_other_one_that_was_done(tmp_path: Path) -> None:
    storage = Store.open(str(tmp_path))

    def shown(ended: str) -> list[tuple[str, str]]:
        keep_index(RunConfig(storage=str(tmp_path), name=ended, tracking_uri="none"), pytest.fail)
        page = (tmp_path / "index.html").read_text()
        return re.findall(r'<tr><th scope=row data-by="(.*?)">.*?<td data-by="(.*?)">', page, re.DOTALL)

    for name, status in (("first", "done"), ("second", "failed"), ("third", "done")):
        run(tmp_path, name, status)
    assert shown("third") == [("third", "done"), ("second", "failed"), ("first", "done")]
    for name in ("first", "second", "third"):
        (tmp_path / name / "result.json").unlink()
    assert shown("third") == [("third", "interrupted"), ("second", "interrupted"), ("first", "done")]
    storage.delete_folder("first")
    run(tmp_path, "third")
    assert shown("third") == [("third", "done"), ("second", "interrupted")]
    (tmp_path / "index.json").write_text('{"entries": [{"name": "of an older version"}]}')
    (tmp_path / "third/result.json").unlink()
    assert shown("second") == [("third", "interrupted"), ("second", "interrupted")]


def test_what_models_were_used_for_is_on_the_page_and_the_way_back(tmp_path: Path) -> None:
    storage = kept.storage(tmp_path / "storage")
    where = ["--storage", str(storage), "--tracking-uri", "none", "--data.uri", "digits"]
    made = ["--model", str(storage / "mlp/artifact")]
    assert predict([*made, *where, "--out", str(tmp_path / "some out/answers")]) == 0
    assert evaluate([*made, *where, "--bootstrap-samples", "100", "--out", str(storage / "judged")]) == 0
    assert predict(["--model", str(kept.artifact("mlp")), *where, "--out", str(tmp_path / "other")]) == 0
    (judged, answers) = overview(Store.open(str(storage))).uses
    assert (judged.kind, judged.name, judged.status, judged.steps) == ("evaluation", "judged", "done", 1797)
    assert judged.scores[0][0] == "accuracy" and judged.scores[0][1] > 0.8
    assert judged.pages == {"report": "judged/report.html"} and judged.of == "mlp/artifact on digits"
    assert (answers.kind, answers.status, answers.steps, answers.pages) == ("prediction", "done", 1797, {})
    assert answers.size == sum(path.stat().st_size for path in (tmp_path / "some out/answers").glob("part-*"))
    page = (storage / "index.html").read_text()
    assert '<a href="judged/report.html">judged</a>' in page and 'data-by="answers">' in page
    assert '<a href="../index.html">← all runs</a>' in (storage / "judged/report.html").read_text()
    shutil.rmtree(tmp_path / "some out")
    assert [use.name for use in overview(Store.open(str(storage))).uses] == ["judged"]


@pytest.mark.parametrize(("here", "there", "link"), [
    ("/a/b", "/a/c d/e", "../c%20d/e/x.html"), ("s3://b/runs", "s3://b/out", "../out/x.html"),
    ("s3://b/runs", "s3://other/out", ""), ("/a", "s3://b/out", "")])
def test_links_lead_to_where_a_browser_may_go(here: str, there: str, link: str) -> None:
    stores = [Store(uri, pafs.LocalFileSystem() if uri[0] == "/" else None, uri) for uri in (here, there)]
    assert way(*stores, "x.html") == link


@needs_chromium
def test_the_page_links_what_there_is_and_is_sorted_and_filtered_by_the_browser_alone(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    for name, accuracy in (("first", 0.7), ("second", 0.95), ("third", 0.8)):
        run(storage, name, accuracy=accuracy, job="mlp" if name != "third" else "<i>cnn</i>")
    (storage / COMPARISONS_FOLDER).mkdir()
    (storage / COMPARISONS_FOLDER / "first-vs-second.html").write_text("<title>both</title>")
    write_index(Store.open(str(storage)), None)
    shown = ("[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden)"
             ".map(row => row.cells[0].innerText.split('\\n')[0])")
    with browser(tmp_path) as page:
        page.open((storage / "index.html").as_uri())
        page.until("document.querySelector('#filter') && !document.querySelector('#filter').hidden")
        assert page.js(shown) == ["third", "second", "first"], "the newest first"
        page.js("[...document.querySelectorAll('th')].find(e => e.innerText === 'scores').click()")
        assert page.js(shown) == ["first", "third", "second"]
        page.js("[...document.querySelectorAll('th')].find(e => e.innerText === 'scores').click()")
        assert page.js(shown) == ["second", "third", "first"]
        page.js("(f => {f.value = 'mlp done'; f.dispatchEvent(new Event('input'))})(document.querySelector('#filter'))")
        assert page.js(shown) == ["second", "first"]
        links = page.js("[...document.querySelectorAll('section a')].map(a => a.href)")
        assert all(Path(link.removeprefix("file://")).is_file() for link in links), links
        assert len(links) == 4
        page.size(390, 800)
        assert page.js("document.documentElement.scrollWidth <= 390")
        assert page.errors == []
