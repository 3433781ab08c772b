"""WebDataset's tars: the same rows as from a folder or JSON Lines, and what has no place in one is refused by name."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.cnn.job import JOB as CNN
from jobs.common.config import from_dict
from jobs.common.data import webdataset
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.account import lines_of
from jobs.common.data.webdataset import samples
from jobs.common.runs.run import main
from jobs.common.training.job import Job
from jobs.common.vision.config import ImageDataConfig
from jobs.common.vision.dataset import find_source
from jobs.mlp.job import JOB as IMAGES
from jobs.transformer.job import JOB as TEXT
from tests.hub import hub_server

Members = dict[str, bytes]


def tar(path: Path, members: Members, *, form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w", format=form) as file:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            file.addfile(about, io.BytesIO(data))
    return path


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


PICTURES = {f"{'bee' if i >= 20 else 'ant'}/{i:02d}.png": picture(i) for i in range(40)}
TEXTS = [(f"row {i} says {'yes' if i % 3 else 'no'}", "yes" if i % 3 else "no") for i in range(60)]


def pictures(rows: range, *, label: str = "cls") -> Members:
    found: Members = {}
    for i, (path, data) in enumerate(PICTURES.items()):
        if i in rows:
            name = path.split("/")[0]
            found[f"{i:06d}.png"] = data
            if label == "json":
                found[f"{i:06d}.json"] = json.dumps({"label": name, "caption": "a picture"}).encode()
            else:
                found[f"{i:06d}.cls"] = (name if label == "cls" else f"{int(name == 'bee')}\n").encode()
    return found


def texts(rows: range, *, as_json: bool = False) -> Members:
    found: Members = {}
    for i in rows:
        text, label = TEXTS[i]
        if as_json:
            found[f"{i}.json"] = json.dumps({"text": text, "label": label}).encode()
        else:
            found |= {f"{i}.txt": text.encode(), f"{i}.cls": f"{label}\n".encode()}
    return found


def prepared(job: Job, where: Path, storage: Path, task: str | None = None, **data: Any) -> Dataset:
    config = from_dict(job.config_type, {"data": {"uri": str(where), **data}} | ({"task": task} if task else {}))
    return job.prepare(config, Store.open(str(storage)), use_ray=False, say=None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, data in PICTURES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(data)
    return tmp_path / "folder"


# ── the same rows ──
@pytest.mark.parametrize("job", [IMAGES, CNN])
@pytest.mark.parametrize("label", ["cls", "json", "folder"])
def test_pictures_are_those_of_a_folder(job: Job, label: str, folder: Path, tmp_path: Path) -> None:
    names = list(PICTURES)
    for shard in range(2):
        rows = range(20 * shard, 20 * shard + 20)
        tar(tmp_path / f"in/part-{shard:06d}.tar", {names[i]: PICTURES[names[i]] for i in rows} if label == "folder"
            else pictures(rows, label=label))
    (tmp_path / "in/notes.txt").touch()
    found = prepared(job, tmp_path / "in", tmp_path / "a")
    assert found.fingerprint == prepared(job, folder, tmp_path / "b").fingerprint
    assert found.class_names == ("ant", "bee")
    assert "left out: 1 files of another format (notes.txt)" in lines_of(found)


def test_a_cls_may_be_a_number(folder: Path, tmp_path: Path) -> None:
    where = tar(tmp_path / "x.tar", pictures(range(40), label="number"))
    assert prepared(IMAGES, where, tmp_path / "a").class_names == ("0", "1")
    named = prepared(IMAGES, where, tmp_path / "a", label_names="0=ant,1=bee")
    assert named.fingerprint == prepared(IMAGES, folder, tmp_path / "b", label_names="ant=ant").fingerprint


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("task", ["classify", "generate"])
def test_texts_are_those_of_json_lines(task: str, as_json: bool, tmp_path: Path) -> None:
    for part, rows in enumerate((range(30), range(30, 60))):
        (tmp_path / "lines").mkdir(exist_ok=True)
        lines = [json.dumps(dict(zip(("text", "label"), TEXTS[i], strict=True))) for i in rows]
        (tmp_path / f"lines/{part}.jsonl").write_text("\n".join(lines))
        tar(tmp_path / f"tars/{part}.tar", texts(rows, as_json=as_json))
    found = prepared(TEXT, tmp_path / "tars", tmp_path / "a", task)
    assert found.fingerprint == prepared(TEXT, tmp_path / "lines", tmp_path / "b", task).fingerprint


@pytest.mark.parametrize("job", [IMAGES, TEXT])
def test_a_packed_tar_and_one_of_another_format_hold_the_same(job: Job, tmp_path: Path) -> None:
    members = pictures(range(40)) if job is IMAGES else texts(range(60))
    long = "a" * 120
    paths = [tar(tmp_path / "a.tar", {f"./{long}/{name}": data for name, data in members.items()}, form=form)
             if form else tar(tmp_path / "b.tar.gz", members)
             for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, None)]
    assert len({prepared(job, path, tmp_path / str(i)).fingerprint for i, path in enumerate(paths)}) == 1


def test_shards_are_split_by_their_names(tmp_path: Path) -> None:
    for name, rows in {"train-000": range(10), "train-001": range(20, 30), "val-000": range(10, 15),
                       "test-000": range(30, 40)}.items():
        tar(tmp_path / f"in/{name}.tar", pictures(rows))
    tar(tmp_path / "in/val-001.tar", pictures(range(15, 20)))
    found = prepared(IMAGES, tmp_path / "in", tmp_path / "out")
    assert {name: split.num_rows for name, split in found.splits.items()} == {"train": 20, "validation": 10, "test": 10}


def test_a_large_tar_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of members whose headers are long, too: a part begins with them."""
    where = tar(tmp_path / "in/x.tar", {f"{'d' * 150}/{name}": data for name, data in pictures(range(40)).items()})
    whole = prepared(IMAGES, where, tmp_path / "a")
    monkeypatch.setattr("jobs.common.vision.sources.tar.FRAGMENT_BYTES", 20_000)
    assert prepared(IMAGES, where, tmp_path / "b").fingerprint == whole.fingerprint
    texts_at = tar(tmp_path / "in/y.tar", texts(range(60)))
    one = prepared(TEXT, texts_at, tmp_path / "a")
    several = prepared(TEXT, texts_at, tmp_path / "b", piece_mb=0.01)
    assert len(several.splits["train"].pieces) > 3
    assert several.splits["train"].class_counts == one.splits["train"].class_counts


def test_what_is_not_wanted_is_passed_over(tmp_path: Path) -> None:
    """Also where it is larger than what is read at a time."""
    members = {"a.jpg": b"x" * 200_000, "a.cls": b"1", ".hidden.cls": b"2", "b.jpg": b"", "b.seg.png": b"y",
               "b.cls": b"3", "README": b"z"}
    for path in (tar(tmp_path / "a.tar", members), tar(tmp_path / "a.tar.gz", members)):
        found = list(samples(Store.open(str(tmp_path)), path.name, "cls".__eq__))
        assert [(sample.key, list(sample.members), sample.data) for sample in found] == [
            ("a", ["jpg", "cls"], {"cls": b"1"}), ("b", ["jpg", "seg.png", "cls"], {"cls": b"3"})]


def test_tars_of_the_hub_are_read_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hub_server() as hub:
        hub.commit("owner/tars", {"data/train-0.tar": tar(tmp_path / "x.tar", pictures(range(40))).read_bytes()})
        assert main(IMAGES, ["--data.check", "--data.uri", "hf://datasets/owner/tars"]) == 0
        assert "the data is in order: 40 rows" in capsys.readouterr().out
        source = find_source("hf://datasets/owner/tars", ImageDataConfig())
        (fragment,) = pickle.loads(pickle.dumps(source)).fragments().by_split["train"]
        sent = pickle.loads(pickle.dumps(fragment))  # as to a task
        assert [len(images.pixels) for images in sent.decode(sent.spec())] == [40]


def test_a_job_trains_on_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tar(tmp_path / "x.tar", pictures(range(40)))
    assert main(IMAGES, ["--data.uri", str(where), "--run.engine", "local", "--run.storage", str(tmp_path / "out"),
                         "--train.epochs", "1", "--train.global-batch-size", "8", "--run.tracking-uri", "none"]) == 0
    assert capsys.readouterr().out.rstrip().rpartition("\n")[2].startswith("artifact: ")


# ── what is refused ──
def odd(kind: bytes, name: str = "000000.cls") -> tarfile.TarInfo:
    about = tarfile.TarInfo(name)
    about.type, about.linkname = kind, "/etc/passwd"
    return about


@pytest.mark.parametrize("job", [IMAGES, TEXT])
@pytest.mark.parametrize(("member", "why"), [
    (odd(tarfile.SYMTYPE), "'000000.cls' is a link"), (odd(tarfile.LNKTYPE), "'000000.cls' is a link"),
    (odd(tarfile.CHRTYPE), "'000000.cls' is a device or a pipe"), (odd(tarfile.FIFOTYPE), "is a device or a pipe"),
    (odd(b"Z"), "is of no kind that is read"),
    (odd(tarfile.REGTYPE, "../000000.cls"), "'../000000.cls' leaves the folder"),
    (odd(tarfile.REGTYPE, "a/../../b.cls"), "leaves the folder"), (odd(tarfile.DIRTYPE, "../up"), "leaves the folder"),
    (odd(tarfile.REGTYPE, "/etc/x.cls"), "'/etc/x.cls' leaves the folder"),
    (odd(tarfile.REGTYPE, "\udcff.cls"), "has a name that is not UTF-8"),
    *((odd(tarfile.REGTYPE, f"000000.{ending}"), f"'000000.{ending}' is a pickle, which may run any program")
      for ending in ("pkl", "pickle", "PYD", "pth", "meta.pkl", "pkl.gz")),
])
def test_a_member_that_has_no_place_in_data_is_refused_by_name(job: Job, member: tarfile.TarInfo, why: str,
                                                               tmp_path: Path) -> None:
    where = tmp_path / "x.tar"
    with tarfile.open(where, "w", format=tarfile.GNU_FORMAT) as file:
        file.addfile(tarfile.TarInfo("000000.png"))
        file.addfile(member)
    with pytest.raises(DataError) as raised:
        prepared(job, where, tmp_path / "out")
    assert f"{where}, member" in str(raised.value) and why in str(raised.value)


@pytest.mark.parametrize("job", [IMAGES, TEXT])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_is_cut_off_anywhere_is_refused(job: Job, packed: bool, tmp_path: Path) -> None:
    """Also between two members, where tarfile sees nothing wrong."""
    members = pictures(range(40)) if job is IMAGES else texts(range(60))
    where = tar(tmp_path / "x.tar.gz" if packed else tmp_path / "x.tar", members)
    whole = where.read_bytes()
    content = gzip.decompress(whole) if packed else whole
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    cuts = [0, 100, 512, 700, 1024, 1024 * 3, end - 512, end]
    for cut in cuts:
        where.write_bytes(gzip.compress(content[:cut]) if packed else content[:cut])
        with pytest.raises(DataError, match=f"{where}.* it is not a whole tar file; write it again"):
            prepared(job, where, tmp_path / "out")
    if packed:
        where.write_bytes(whole[:len(whole) // 2])
        with pytest.raises(DataError, match=f"{where} cannot be read"):
            prepared(job, where, tmp_path / "out")


def test_a_tar_that_is_damaged_inside_is_refused(tmp_path: Path) -> None:
    """tarfile takes a header that is none for the end: half of the rows would be gone."""
    where = tar(tmp_path / "x.tar", pictures(range(40)))
    data = bytearray(where.read_bytes())
    middle = next(sample.start for i, sample in enumerate(samples(Store.open(str(tmp_path)), "x.tar", lambda _: False))
                  if i == 20)
    data[middle:middle + 100] = b"\xff" * 100
    where.write_bytes(data)
    with pytest.raises(DataError, match=rf"is damaged behind byte {middle + 512:,}: it is not a whole tar"):
        prepared(IMAGES, where, tmp_path / "out")


def test_what_a_header_announces_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MOST_MEMBER", 1000)
    where = tar(tmp_path / "x.tar", {"a.txt": b"x" * 2000, "a.cls": b"1"})
    with pytest.raises(DataError, match=r"member a\.txt has 2,000 bytes, more than"):
        prepared(TEXT, where, tmp_path / "out")
    where = tar(tmp_path / "x.tar", {f"{'n' * 2000}.txt": b"x"})
    with pytest.raises(DataError, match=r"it announces .* bytes at once"):
        prepared(TEXT, where, tmp_path / "out")


@pytest.mark.parametrize(("members", "message"), [
    ({"a.cls": b"1"}, r"sample a has no picture \(\.cls\): it needs one, and its members must lie one after another"),
    ({"a.png": b"", "b.png": b"", "a.cls": b"1"}, "sample a has no label: give each sample a .cls, or a .json w"),
    ({"a.png": b"", "a.jpg": b"", "a.cls": b"1"}, r"sample a has 2 pictures \(\.png, \.jpg, \.cls\)"),
    ({"a.png": b"", "a.cls": b"1", "b.png": b""}, "sample b has no label: it needs a .cls with a number or a name, as"),
    ({"a.png": b"", "a.cls": b" "}, "sample a has no label: it needs a .cls with a number or a name"),
    ({"a.png": b"", "a.cls": b"\xff"}, "sample a: its .cls is not UTF-8"),
    ({"a.png": b"", "a.json": b"["}, "sample a: its .json is no JSON object"),
    ({"a.png": b"", "a.json": b"[1]"}, "sample a: its .json is no JSON object"),
    ({"a.png": b"", "a.json": b'{"label": 1}', "b.png": b"", "b.json": b'{"label": 1.5}'}, "sample b .* and has 1.5"),
    ({"x/a.png": b"", "b.png": b""}, "sample b has no label: it needs a folder of its class"),
    ({**pictures(range(40)), "000003.png": b"no picture"}, "x.tar, member 000003.png cannot be decoded as an image"),
    ({"a.png": b"", "a.PNG": b"", "a.cls": b"1"}, r"the sample a has two members \.png"),
])
def test_a_sample_of_pictures_that_is_none_is_named(members: Members, message: str, tmp_path: Path) -> None:
    rows = {name: data or picture(3) for name, data in members.items()}
    with pytest.raises(DataError, match=message):
        prepared(IMAGES, tar(tmp_path / "x.tar", rows), tmp_path / "out")


@pytest.mark.parametrize(("members", "message"), [
    ({"a.txt": b"\xff", "a.cls": b"1"}, r"x.tar, sample a is not UTF-8 \(byte 0\): pass --data.encoding latin-1"),
    ({"a.json": b"{", "b.json": b"[]"}, "2 rows cannot be read: mend it; or leave them out with --data.bad-rows skip"),
    ({"a.json": b'{"text": 1, "label": "x"}'}, "sample a holds int, not text, in column 'text'"),
    ({"a.json": b'{"words": "x", "label": "x"}'}, "x.tar has no column 'text': it has words, label; name one with"),
    ({"a.txt": b"x"}, "x.tar has no column 'label': it has text; name one with --data.label-column"),
    ({"a.png": b"x"}, "x.tar holds no text: none of its samples has a member .txt or .json"),
    ({}, "x.tar holds no text"),
])
def test_a_sample_of_text_that_is_none_is_named(members: Members, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        prepared(TEXT, tar(tmp_path / "x.tar", members), tmp_path / "out")


def test_samples_that_cannot_be_read_may_be_left_out(tmp_path: Path) -> None:
    where = tar(tmp_path / "x.tar", {**texts(range(60)), "bad.txt": b"\xff", "bad.cls": b"no"})
    found = prepared(TEXT, where, tmp_path / "out", bad_rows="skip", bad_rows_most=0.1)
    assert sum(split.num_rows for split in found.splits.values()) == 60
    assert any("x.tar, sample bad" in line for line in lines_of(found))
