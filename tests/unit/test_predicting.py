"""`trainyard predict`: every row gets its answer once, whatever its file, and whoever is killed meanwhile."""

import csv
import io
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.core.errors import TrainingFailedError
from cluster.core.storage import Store
from jobs.common.artifact.artifact import open_artifact
from jobs.common.data.csv_config import CsvDataConfig
from jobs.common.predicting.columns import InputColumns
from jobs.common.predicting.evaluate import main as evaluate
from jobs.common.predicting.model import find_model
from jobs.common.predicting.output import Output
from jobs.common.predicting.predict import main
from jobs.common.predicting.source import Kind, find_rows
from jobs.common.predicting.work import NumberedPiece, Work, Worker
from jobs.common.predictor.find import load_predictor
from jobs.common.runs.run import main as train
from jobs.tabular.job import JOB as TABULAR
from tests import kept, runs

IMAGES = np.random.default_rng(0).integers(0, 256, (240, 28, 28, 1), np.uint8)


def predict(model: Path | str, data: Path | str, out: Path, *flags: str) -> int:
    return main(["--model", str(model), "--data.uri", str(data), "--out", str(out), *flags])


def answers(out: Path) -> Any:
    """As any reader of a folder of Parquet finds them."""
    return pads.dataset(out).to_table()


def failed(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / "_failed/failed.parquet").to_pylist()


def pixels(path: Path, images: np.ndarray = IMAGES, row_group: int = 1 << 20) -> Path:
    column = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images[0].size)
    pq.write_table(pa.table({"id": np.arange(len(images)), "image": column}), path, row_group_size=row_group)
    return path


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_rows_keep_their_columns_and_get_the_answers_of_the_model(tmp_path: Path) -> None:
    model = kept.artifact("mlp")
    assert predict(model, pixels(tmp_path / "in.parquet"), tmp_path / "out.parquet", "--drop", "image",
                   "--batch-rows", "64") == 0
    table, labels = answers(tmp_path / "out.parquet"), open_artifact(model).manifest.description.labels
    wanted = load_predictor(open_artifact(model)).predict(IMAGES)
    assert table.column("id").to_pylist() == list(range(240))
    assert np.array(table.column("probabilities").to_pylist()) == pytest.approx(wanted, abs=1e-6)
    assert table.column("predicted").to_pylist() == [labels[code] for code in wanted.argmax(1)]
    assert table.column("probability").to_pylist() == [row[0] for row in table.column("top_probabilities").to_pylist()]
    assert [row[0] for row in table.column("top_labels").to_pylist()] == table.column("predicted").to_pylist()
    manifest = json.loads((tmp_path / "out.parquet/_manifest.json").read_text())
    assert (manifest["rows"], manifest["failed"]) == (240, 0)
    assert sorted(path.name for path in (tmp_path / "out.parquet").iterdir()) == [
        "_failed", "_manifest.json", "part-000000.parquet"]


@pytest.mark.parametrize("row_group", [1 << 20, 7])
def test_it_is_the_same_in_pieces(row_group: int, tmp_path: Path) -> None:
    data = pixels(tmp_path / "in.parquet", row_group=row_group)
    for name, flags in (("whole", ()), ("pieces", ("--piece-mb", "0.02"))):
        assert predict(kept.artifact("mlp"), data, tmp_path / name, "--batch-rows", "5", *flags) == 0
    assert len(list((tmp_path / "pieces").glob("part-*"))) > 5
    assert answers(tmp_path / "pieces").drop_columns(["image"]).to_pylist()[0].keys() >= {"id", "predicted"}
    assert answers(tmp_path / "pieces").column("id").to_pylist() == list(range(240))
    assert answers(tmp_path / "pieces").column("predicted") == answers(tmp_path / "whole").column("predicted")


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    data, out = pixels(tmp_path / "in.parquet", np.repeat(IMAGES, 6, axis=0)), tmp_path / "out.parquet"
    command = ["--model", str(kept.artifact("mlp")), "--data.uri", str(data), "--batch-rows", "1", "--piece-mb", "0.1"]
    with runs.python("jobs.common.predicting.predict", *command, "--out", str(out), folder=out) as job:
        job.until(lambda: len(list((out / "_work").glob("0*.json"))) > 2)
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert not (out / "_manifest.json").exists()
    assert main([*command, "--out", str(out)]) == 0
    assert main([*command, "--out", str(tmp_path / "undisturbed")]) == 0
    assert content(out) == content(tmp_path / "undisturbed")
    kept_parts = [name for name, mtime in done.items() if (out / name).stat().st_mtime_ns == mtime]
    assert 2 < len(kept_parts) < len(list(out.glob("part-*.parquet")))
    assert answers(out).column("id").to_pylist() == list(range(1440))


def test_a_piece_that_goes_on_killing_actors_is_given_up(tmp_path: Path) -> None:
    model, data = find_model(str(kept.artifact("mlp")), None, Store.open(str(tmp_path))), CsvDataConfig(uri="digits")
    output = Output(Store.open(str(tmp_path / "out")))
    piece = NumberedPiece(0, find_rows(data, "image").pieces[0])
    work = Work(model=model.reference, inputs=InputColumns(model.artifact.manifest.description), output=output,
                schema=next(piece.piece.rows(1)).columns.schema, dropped=(), top_k=1, threads=1, most_failed=0,
                batch_rows=500, most_tries=2)
    assert [output.tried(0), output.tried(0)] == [1, 2]
    with pytest.raises(TrainingFailedError, match="2 actors died with the same rows of digits: give them more memory"):
        Worker(work)(piece)
    output.forget_tries()
    assert Worker(work)(piece)["rows"] == 1797
    assert Worker(work)(piece)["rows"] == 1797, "it is there"


def test_pictures_that_cannot_be_read_are_listed_and_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in/sub").mkdir(parents=True)
    for number in range(20):
        Image.fromarray(IMAGES[number, ..., 0]).save(tmp_path / f"in/sub/{number:02d}.png")
    (tmp_path / "in/sub/07.png").write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    (tmp_path / "in/notes.txt").write_text("no picture")
    model, out = kept.artifact("cnn"), tmp_path / "out.parquet"
    assert predict(model, tmp_path / "in", out) == 2
    assert "more than the 0 that --most-failed allows" in (said := capsys.readouterr().err)
    assert "sub/07.png" in said
    assert predict(model, tmp_path / "in", out, "--most-failed", "0.1", "--batch-rows", "8") == 0
    assert "left out: 1 files of another format (notes.txt …)" in capsys.readouterr().out
    (row,) = failed(out)
    assert (row["file"], row["row"]) == (str(tmp_path / "in/sub/07.png"), 0)
    assert "cannot be decoded as an image" in row["reason"]
    assert answers(out).column("path").to_pylist() == [f"sub/{number:02d}.png" for number in range(20) if number != 7]
    assert answers(out).column_names[:2] == ["path", "predicted"], "the pictures are where they were"


TEXTS = ["Deutschland", "the United States, \"and\"\nmore", "Königreich", "", "Frankreich", "1 day"]


def as_csv(rows: Sequence[Sequence[object]]) -> str:
    sink = io.StringIO()
    csv.writer(sink).writerows([["id", "text"], *rows])
    return sink.getvalue()


def as_json(rows: Sequence[Sequence[object]]) -> str:
    return "".join(json.dumps(dict(zip(("id", "text"), row, strict=True))) + "\n" for row in rows)


@pytest.mark.parametrize(("name", "write", "broken"), [
    ("rows.csv", as_csv, "9,too,many\n"), ("rows.jsonl", as_json, '{"id": 9,\n')])
def test_texts_are_answered_and_rows_that_are_none_are_named(
        name: str, write: Callable[[Sequence[Sequence[object]]], str], broken: str, tmp_path: Path) -> None:
    rows = list(enumerate(TEXTS))
    lines = write(rows[:2]) + broken + write(rows[2:]).removeprefix("id,text\r\n")
    (tmp_path / name).write_text(lines, newline="")
    out = tmp_path / "out.parquet"
    assert predict(kept.artifact("transformer"), tmp_path / name, out, "--most-failed", "0.5") == 0
    found = answers(out)
    there = [row for row in rows if row[1]]
    assert found.select(["id", "text"]).to_pylist() == [{"id": str(number), "text": text} for number, text in there]
    predictor = load_predictor(open_artifact(kept.artifact("transformer")))
    wanted = predictor.predict(predictor.decode({"text": np.array([text for _, text in there], object)}))
    assert np.array(found.column("probabilities").to_pylist()) == pytest.approx(wanted, abs=1e-5)
    assert [(row["row"], row["reason"].split()[0]) for row in failed(out)] == [
        (2, "is" if "{" in broken else "has"), (4, "holds")]


@pytest.mark.parametrize(("name", "kind"), [("rows.csv", "text"), ("rows.jsonl", "text")])
def test_a_file_is_cut_between_rows(name: str, kind: Kind, tmp_path: Path) -> None:
    rows = [(number, f"{'word ' * (number % 9)}\n\"quoted\", {number}") for number in range(500)]
    (tmp_path / name).write_text((as_csv if name.endswith("csv") else as_json)(rows), newline="")
    cut = find_rows(CsvDataConfig(uri=str(tmp_path / name), piece_mb=0.001), kind)
    assert len(cut.pieces) > 5 and cut.num_rows == 500
    found = [(piece.call(int(number))[1], row) for piece in cut.pieces for each in piece.rows(7)
             for number, row in zip(each.numbers, each.columns.to_pylist(), strict=True)]
    assert found == [(number, {"id": str(number), "text": text}) for number, text in rows]


def test_a_table_is_answered_alike_as_csv_and_as_parquet(tmp_path: Path) -> None:
    storage = str(tmp_path / "runs")
    assert train(TABULAR, ["--run.engine", "local", "--run.storage", storage, "--run.tracking-uri", "none",
                           "--train.epochs", "1", "--eval.importance-rows", "0"]) == 0
    model = tmp_path / "runs/run/artifact"
    assert predict(model, "diabetes", tmp_path / "embedded", "--batch-rows", "100") == 0
    table = answers(tmp_path / "embedded")
    assert table.column("prediction").type == pa.float64() and "age" in table.column_names
    rows = table.drop_columns(["prediction", "unseen_values"]).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows([*rows, {**rows[0], "bmi": "thick"}])
    for name in ("rows.parquet", "rows.csv"):
        assert predict(model, tmp_path / name, tmp_path / f"{name}.out", "--batch-rows", "100") == 0
        assert answers(tmp_path / f"{name}.out").column("prediction").to_numpy() == pytest.approx(
            table.column("prediction").to_numpy(), rel=1e-5)
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text().replace("thick", "20"))
    assert evaluate(["--model", str(model), "--data.uri", str(tmp_path / "rows.csv"), "--slices", "sex", "--out",
                     str(tmp_path / "evaluation")]) == 0
    (found,) = json.loads((tmp_path / "evaluation/evaluation.json").read_text())["models"]
    errors = table.column("prediction").to_numpy() - table.column("target").to_numpy()
    assert found["metrics"]["rmse"] == pytest.approx(float(np.sqrt((errors**2).mean())), rel=0.02)
    assert {each["value"] for each in found["slices"]["sex"]} == {"first", "second"}
    assert failed(tmp_path / "rows.csv.out") == [
        {"file": str(tmp_path / "rows.csv"), "row": 442, "reason": "column 'bmi' is 'thick', which is no number"}]


def test_texts_go_on_as_they_do_alone(tmp_path: Path) -> None:
    rows = [(number, text) for number, text in enumerate(["def main(", "import os", "class Foo", "import os"])]
    (tmp_path / "rows.csv").write_text(as_csv([*rows, (9, "long " * 500)]), newline="")
    model = kept.artifact("lm")
    generator: Any = load_predictor(open_artifact(model)).generator(0)  # type: ignore[attr-defined]
    for name, flags in (("likeliest", ()), ("drawn", ("--temperature", "1")), ("again", ("--temperature", "1"))):
        assert predict(model, tmp_path / "rows.csv", tmp_path / name, "--most-failed", "0.5", "--max-tokens", "9",
                       "--batch-rows", "1" if name == "again" else "4", *flags) == 0
        assert [row["row"] for row in failed(tmp_path / name)] == [4]
    found = answers(tmp_path / "likeliest").to_pylist()
    for row in found:
        alone, piece, text = generator.row(0.0, 1.0, np.random.default_rng(0)), generator.pieces(), ""
        generator.join(generator.tokens(row["text"]), [alone])
        for _ in range(row["tokens"]):
            text += piece(alone.token)
            generator.step()
        generator.leave([alone])
        assert row["continuation"] == text and row["ended"] == (row["tokens"] < 9)
    drawn = answers(tmp_path / "drawn").column("continuation").to_pylist()
    assert drawn == answers(tmp_path / "again").column("continuation").to_pylist()
    assert drawn[1] == drawn[3] and drawn != [row["continuation"] for row in found]


def test_what_is_there_is_gone_on_with_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, model = pixels(tmp_path / "in.parquet"), tmp_path / "out.parquet", kept.artifact("mlp")
    assert predict(model, data, out) == 0
    before = content(out)
    assert predict(model, data, out) == 0
    assert "is complete already" in capsys.readouterr().out
    assert predict(kept.artifact("cnn"), data, out, "--top-k", "2") == 2
    assert "has answers of another model; --top-k 3, not 2: pass --overwrite, or another --out" in (
        capsys.readouterr().err)
    pixels(data, IMAGES[:100])
    assert predict(model, data, out) == 2
    assert "has answers of other data" in capsys.readouterr().err
    assert content(out) == before
    (out / "mine.txt").write_text("a note")
    assert predict(model, data, out, "--overwrite", "--batch-rows", "32") == 0
    assert answers(out.joinpath("part-000000.parquet")).num_rows == 100
    assert (out / "mine.txt").exists()
    assert predict(model, data, out, "--batch-rows", "16") == 2
    assert "--batch-rows 32, not 16" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "data", "flags", "said"), [
    ("mlp", "rows.csv", (), "has no column 'image', which the model takes (image; image-classification): it has id"),
    ("transformer", "in.parquet", (), "has no column 'text', which the model takes (text; text-classification)"),
    ("transformer", "in.parquet", ("--data.text-column", "image"), "column 'image' holds fixed_size_list"),
    ("mlp", "in.parquet", ("--drop", "imag"), "there is no column 'imag': the data has id, image"),
    ("mlp", "nothing", (), "there is no such file or folder"),
    ("mlp", ".", (), "has files of CSV and Parquet, whose rows have other types"),
    ("mlp", "in.parquet", ("--out", "."), "holds something else, which is left as it is"),
    ("mlp", "in.parquet", ("--workers", "2"), "without a Ray cluster this process does all"),
    ("mlp", "in.parquet", ("--workers", "x"), "--workers x: use N, or MIN:MAX"),
    ("mlp", "in.parquet", ("--top-k", "0"), "--top-k 0: must be at least 1"),
    ("mlp", "taken.parquet", (), "the data has a column 'predicted', as the answers do: pass --drop predicted"),
    ("mlp", "in.parquet", ("--out", "/proc/nothing"), "--out /proc/nothing cannot be written"),
    ("none", "in.parquet", (), "no artifact at")])
def test_what_cannot_be_is_said_in_one_line(model: str, data: str, flags: Sequence[str], said: str, tmp_path: Path,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("id,text\n1,one\n")
    pixels(tmp_path / "in.parquet", IMAGES[:10])
    pq.write_table(pq.read_table(tmp_path / "in.parquet").rename_columns(["predicted", "image"]),
                   tmp_path / "taken.parquet")
    if data != ".":
        (tmp_path / ("rows.csv" if data.endswith("parquet") else "in.parquet")).rename(tmp_path / "other")
    chosen = [str(tmp_path) if flag == "." else flag for flag in flags]
    assert predict(kept.artifact(model), tmp_path / data, tmp_path / "out.parquet", *chosen) == 2
    assert said in (found := capsys.readouterr().err)
    assert "Traceback" not in found
    assert not (tmp_path / "out.parquet/_manifest.json").exists()


def test_an_artifact_that_was_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = kept.storage(tmp_path / "storage")
    weights = storage / "mlp/artifact/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    assert predict(storage / "mlp/artifact", "digits", tmp_path / "out") == 2
    assert "model.safetensors differs from its sha256" in capsys.readouterr().err


def test_files_of_other_columns_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("id,text\n1,one\n")
    (tmp_path / "in/b.csv").write_text("id,texts\n1,one\n")
    assert predict(kept.artifact("transformer"), tmp_path / "in", tmp_path / "out") == 2
    assert "not all files of the data have the same columns (text, texts)" in capsys.readouterr().err
