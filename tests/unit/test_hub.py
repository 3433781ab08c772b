"""Datasets of the Hugging Face Hub: the same rows as from a folder, at one commit, and one message for what is wrong.

The server is small and on loopback (tests/hub.py); what is asked of it is asked by huggingface_hub itself.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.core.errors import DataError, StorageError, UserError
from cluster.core.storage import Store
from jobs.common.config import from_dict, parse
from jobs.common.data.commits import at_commits
from jobs.common.data.dataset import Dataset
from jobs.common.runs.run import main
from jobs.common.training.job import Job
from jobs.mlp.job import JOB as IMAGES
from jobs.tabular.job import JOB as TABLES
from jobs.transformer.job import JOB as TEXT
from tests.hub import Files, Hub, hub_server
from tuning.options import combined
from tuning.run import Tuning

NAME = "owner/rows"
URI = f"hf://datasets/{NAME}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as server:
        yield server


def text_files(word: str = "row") -> Files:
    rows = [json.dumps({"text": f"{word} {i} of {'cats' if i % 2 else 'dogs'}", "label": "cat" if i % 2 else "dog"})
            for i in range(60)]
    return {"data/part-0.jsonl": "\n".join(rows[:30]).encode(), "data/part-1.jsonl": "\n".join(rows[30:]).encode(),
            "README.md": b"# About it", ".gitattributes": b"*.parquet filter=lfs"}


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def picture_table() -> bytes:
    sink = io.BytesIO()
    images = pa.array([{"bytes": picture(i), "path": f"{i}.png"} for i in range(40)])
    pq.write_table(pa.table({"image": images, "label": [i % 2 for i in range(40)]}), sink, row_group_size=10)
    return sink.getvalue()


def picture_folder() -> Files:
    return {f"{'cat' if i % 2 else 'dog'}/{i:02d}.png": picture(i) for i in range(40)}


def written(folder: Path, files: Files) -> str:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return str(folder)


def prepared(job: Job, storage: Path, uri: str, **data: Any) -> Dataset:
    config = from_dict(job.config_type, {"data": {"uri": uri, **data}})
    return job.prepare(config, Store.open(str(storage)), use_ray=False, say=print)


@pytest.mark.parametrize(("job", "files"), [
    (TEXT, text_files()), (IMAGES, {"data/train.parquet": picture_table()}), (IMAGES, picture_folder()),
    (TABLES, {"rows.csv": b"a,target\n" + b"".join(b"%d,%d\n" % (i, i % 2) for i in range(60))})])
def test_the_rows_are_those_of_the_same_files_in_a_folder(hub: Hub, tmp_path: Path, job: Job, files: Files) -> None:
    hub.commit(NAME, files)
    there = prepared(job, tmp_path / "a", URI)
    here = prepared(job, tmp_path / "b", written(tmp_path / "files", files))
    assert there.fingerprint == here.fingerprint
    assert there.splits == here.splits


def test_a_path_a_pattern_and_a_revision_may_be_named(hub: Hub, tmp_path: Path) -> None:
    files = text_files()
    hub.commit(NAME, {**files, "other.jsonl": b"{}"}, branch="refs/convert/parquet")
    hub.commit(NAME, {"b/c.txt": b"something else"})
    for place in ("/data", "/data/*.jsonl", "/data/"):
        found = prepared(TEXT, tmp_path / "storage", f"{URI}@refs/convert/parquet{place}")
        assert sum(split.num_rows for split in found.splits.values()) == 60
    one = prepared(TEXT, tmp_path / "storage", f"{URI}@refs%2Fconvert%2Fparquet/data/part-1.jsonl")
    assert sum(split.num_rows for split in one.splits.values()) == 30


def test_a_revision_is_resolved_once_and_its_commit_is_read_whatever_becomes_of_the_branch(
        hub: Hub, tmp_path: Path) -> None:
    first = hub.commit(NAME, text_files())
    said: list[str] = []
    config, commits = at_commits(from_dict(TEXT.config_type, {"data": {"uri": f"{URI}/data"}}), {}, said.append)
    assert config.data.uri == f"{URI}@{first}/data"
    assert commits == {f"{URI}@main": first}
    assert said == [f"{URI}@main is at commit {first}, which is read from now on"]
    hub.commit(NAME, text_files("moved"))
    hub.asked.clear()
    dataset = TEXT.prepare(config, Store.open(str(tmp_path / "a")), use_ray=False, say=print)
    read = [path for path, _ in hub.asked if "/resolve/" in path]
    assert read and all(first in path for path, _ in hub.asked)
    files = written(tmp_path / "files", text_files())
    assert dataset.fingerprint == prepared(TEXT, tmp_path / "b", files).fingerprint
    assert at_commits(config, {})[0] == config  # asks nobody
    other, _ = at_commits(from_dict(TEXT.config_type, {"data": {"uri": f"{URI}/data"}}), commits)
    assert other.data.uri == config.data.uri


def test_training_validation_and_test_are_of_one_commit(hub: Hub) -> None:
    first = hub.commit(NAME, text_files())
    data = {"uri": URI, "val_uri": f"{URI}@main/val", "test_uri": f"{URI}@main/test"}
    config, _ = at_commits(from_dict(TEXT.config_type, {"data": data}), {})
    assert {config.data.val_uri, config.data.test_uri} == {f"{URI}@{first}/val", f"{URI}@{first}/test"}
    assert len([path for path, _ in hub.asked if "/revision/" in path]) == 1


def test_another_commit_with_the_same_content_is_the_same_data(hub: Hub, tmp_path: Path) -> None:
    hub.commit(NAME, text_files())
    before = prepared(TEXT, tmp_path, URI)
    hub.commit(NAME, {**text_files(), "README.md": b"# More about it"})
    hub.asked.clear()
    assert prepared(TEXT, tmp_path, URI).store.location() == before.store.location()
    assert not [path for path, _ in hub.asked if "/resolve/" in path]
    hub.commit(NAME, text_files("other"))
    assert prepared(TEXT, tmp_path, URI).fingerprint != before.fingerprint


def test_a_run_keeps_its_commit_and_goes_on_with_it_after_the_branch_has_moved(
        hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = hub.commit(NAME, {"data/train.parquet": picture_table()})
    asked = ["--data.uri", URI, "--run.engine", "local", "--run.storage", str(tmp_path), "--run.name", "r",
             "--train.epochs", "1", "--train.global-batch-size", "8", "--run.tracking-uri", "none"]
    assert main(IMAGES, asked) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "r/run.json").read_text())
    assert record["commits"] == {f"{URI}@main": first}
    assert record["config"]["data"]["uri"] == f"{URI}@{first}"
    assert f"uri: {URI}@{first}" in (tmp_path / "r/config.yaml").read_text()
    assert f"{URI}@{first}" in (tmp_path / "r/data.html").read_text()
    assert f"{URI}@{first}" in (tmp_path / "r/artifact/manifest.json").read_text()
    hub.commit(NAME, picture_folder())
    (tmp_path / "r/result.json").unlink()  # as if it had been stopped
    assert main(IMAGES, asked) == 0, capsys.readouterr().err
    moved = [*asked[:1], f"{URI}@{hub.branches[NAME]['main']}", *asked[2:]]
    (tmp_path / "r/result.json").unlink()
    assert main(IMAGES, moved) == 2
    assert f"data.uri: {URI}@{first} -> {moved[1]}" in capsys.readouterr().err


def test_a_search_reads_one_commit_in_all_its_trials(hub: Hub, tmp_path: Path) -> None:
    first = hub.commit(NAME, {"data/train.parquet": picture_table()})
    options = parse(combined(IMAGES.config_type), ["--data.uri", URI, "--run.storage", str(tmp_path)], "test")
    tuning = Tuning(IMAGES, options)
    search = tuning.open(Store.open(str(tmp_path / "s")))
    assert tuning.base.data.uri == search.flat_base["data.uri"] == f"{URI}@{first}"
    search.journal.begin(tuning.about())
    hub.commit(NAME, picture_folder())
    later = Tuning(IMAGES, options).open(Store.open(str(tmp_path / "s")))
    assert later.flat_base["data.uri"] == f"{URI}@{first}"


def test_data_is_checked(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    first = hub.commit(NAME, text_files())
    assert main(TEXT, ["--data.check", "--data.uri", URI]) == 0
    said = capsys.readouterr().out
    assert f"is at commit {first}" in said
    assert "the data is in order: 60 rows" in said


def test_the_token_is_sent_and_never_said(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    hub.commit(NAME, text_files())
    hub.tokens[NAME] = "hf_secret"
    assert main(TEXT, ["--data.check", "--data.uri", URI]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") <= 3 and "see to it that HF_TOKEN is set to a token that may read it" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DataError, match=r"or it is private: .* the token in HF_TOKEN is one of an account"):
        prepared(TEXT, tmp_path, URI)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert main(TEXT, ["--data.check", "--data.uri", URI]) == 0
    assert {who for _, who in hub.asked[-3:]} == {"Bearer hf_secret"}
    assert "hf_secret" not in "".join(capsys.readouterr())
    assert b"hf_secret" not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# ── what is wrong ──
@pytest.mark.parametrize(("uri", "message"), [
    ("hf://datasets/owner/nothing", r"there is no dataset owner/nothing at http://127.* or it is private: check OWNER"),
    (f"{URI}@old", rf"{NAME} has no branch, tag or commit 'old': take one .*/datasets/{NAME}/branches"),
    (f"{URI}@{'0' * 40}", rf"{NAME} has no branch, tag or commit '0{{40}}'"),
    ("hf://datasets/rows", "names no dataset of the Hub: write hf://datasets/OWNER/NAME"),
    ("hf://owner/model", "names no dataset of the Hub"),
    (f"{URI}/none", f"no files in {URI}@[0-9a-f]{{40}}/none: give"),
    ("hf://datasets/owner/empty", "no files in hf://datasets/owner/empty@[0-9a-f]{40}: give"),
    ("hf://datasets/owner/gated", r"the dataset is gated: ask for access at http.*/datasets/owner/gated, and see"),
    ("hf://datasets/owner/forbidden", r"refuses it \(403\): see to it that HF_TOKEN is set"),
])
def test_what_cannot_be_read_is_said_with_a_remedy(hub: Hub, tmp_path: Path, uri: str, message: str) -> None:
    for name in (NAME, "owner/gated", "owner/forbidden"):
        hub.commit(name, text_files())
    hub.commit("owner/empty", {"README.md": b"# Nothing yet", ".gitattributes": b""})
    hub.gated.add("owner/gated")
    hub.broken["forbidden"] = 403
    with pytest.raises(DataError, match=message):
        prepared(TEXT, tmp_path / "storage", uri)
    assert not (tmp_path / "storage").exists()


def test_a_hub_that_does_not_answer_is_no_fault_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127.0.0.1:9 cannot be reached \(.*\): check the network") as raised:
        prepared(TEXT, tmp_path, URI)
    assert not isinstance(raised.value, DataError)  # which a queue would take for a lasting one
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE keeps huggingface_hub from the network: unset it"):
        prepared(TEXT, tmp_path, URI)


def test_a_hub_that_breaks_off_is_said_of_the_file(hub: Hub, tmp_path: Path) -> None:
    hub.commit(NAME, text_files())
    hub.broken["resolve"] = 501
    with pytest.raises(UserError, match=rf"{URI}@.*answers 501: check the network"):
        prepared(TEXT, tmp_path, URI)


def test_a_repository_is_never_written(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    hub.commit(NAME, text_files())
    store = Store.open(f"{URI}@main")
    with pytest.raises(StorageError, match="datasets of the Hub are only read here"):
        store.write_text("x", "y")
    for change in (lambda: store.delete("data/part-0.jsonl"), lambda: store.delete_folder("data")):
        with pytest.raises(OSError, match="only read here"):
            change()
    assert main(IMAGES, ["--run.storage", URI]) == 2
    assert "datasets of the Hub are only read: pass a folder" in capsys.readouterr().err
