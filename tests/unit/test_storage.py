"""cluster/core/storage.py: the same behaviour on a local folder and on a real S3 server,
and clear errors where it breaks."""

import ctypes
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.core.errors import StorageError, StorageFullError
from cluster.core.storage import Store
from cluster.core.tls_remedy import tls_remedy
from jobs.common.runs.run import main
from jobs.mlp.job import JOB
from tests.s3 import BUCKET, s3_server
from tests.unit.test_tls import certificate


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store.open(str(tmp_path / "a" / "store"))
    request.getfixturevalue("s3")
    return Store.open(f"s3://{BUCKET}/{tmp_path.name}")


def names(store: Store, path: str = "") -> list[str]:
    return [file.path for file in store.files(path)]


def test_what_is_written_is_read_back(store: Store) -> None:
    store.write_bytes("deep/down/data.bin", bytes(range(256)) * 100)
    store.write_text("name with space é.txt", "grüße\n")
    assert store.read_bytes("deep/down/data.bin") == bytes(range(256)) * 100
    assert store.read_text("name with space é.txt") == "grüße\n"
    with store.reading("deep/down/data.bin") as stream:
        stream.seek(250)
        assert stream.read(8) == bytes([250, 251, 252, 253, 254, 255, 0, 1])


def test_the_options_of_an_s3_address_hold_for_what_lies_below(s3: str, tmp_path: Path) -> None:
    address = (f"s3://{BUCKET}/{tmp_path.name}?scheme=http&endpoint_override={s3.removeprefix('http://')}&region=us-east-1")
    below = Store.open(address).child("deep/down")
    below.write_text("x", "text")
    assert Store.open(f"s3://{BUCKET}/{tmp_path.name}").read_text("deep/down/x") == "text"
    assert Store.open(below.location("x").replace("/x?", "?")).read_text("x") == "text"


def test_a_second_write_replaces_the_first(store: Store) -> None:
    store.write_text("x", "a longer first text")
    store.write_text("x", "second")
    assert store.read_text("x") == "second"
    assert names(store) == ["x"]


def test_files_and_folders_are_listed_in_order(store: Store) -> None:
    for path in ("b/2", "b/1", "a", "b/c/3"):
        store.write_text(path, path)
    assert names(store) == ["a", "b/1", "b/2", "b/c/3"]
    assert names(store, "b") == ["b/1", "b/2", "b/c/3"]
    assert [file.path for file in store.files("b", recursive=False)] == ["b/1", "b/2"]
    assert store.folders() == ["b"]
    assert store.folders("b") == ["c"]
    assert [(file.size, file.mtime > 1.6e9) for file in store.files("b/c")] == [(5, True)]


def test_links_are_followed_and_each_real_folder_is_listed_once(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "in"))
    for path in ("a/1", "b/2", "c"):
        store.write_text(path, path)
    Store.open(str(tmp_path / "elsewhere")).write_text("far/3", "3")
    links = {"a/again": "../b", "b/top": "..", "b/self": "self", "far": "../elsewhere", "far2": "../elsewhere/far",
             "none": "gone",
             "file": "c"}
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    os.mkfifo(tmp_path / "in/pipe")
    assert names(store) == ["a/1", "b/2", "c", "far/far/3", "file"]
    assert names(store, "a") == ["a/1", "a/again/2", "a/again/top/c", "a/again/top/far/far/3", "a/again/top/file"]
    assert [file.path for file in store.files(recursive=False)] == ["c", "file"]
    assert names(Store.open("/"), str(tmp_path / "elsewhere")[1:]) == [str(tmp_path / "elsewhere/far/3")[1:]]


def test_what_is_not_there_is_absent_not_an_error(store: Store) -> None:
    assert not store.exists("nothing")
    assert (store.files("nothing"), store.folders("nothing")) == ([], [])
    store.delete("nothing")
    store.delete_folder("nothing")
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")


def test_deleting_takes_only_what_is_named(store: Store) -> None:
    for path in ("run/1", "run/2", "run2/1"):
        store.write_text(path, path)
    store.delete("run/1")
    assert names(store) == ["run/2", "run2/1"]
    store.delete_folder("run")
    assert names(store) == ["run2/1"]
    assert not store.exists("run/2")
    assert not store.exists("run2")  # a folder is no file


def test_a_child_is_the_store_of_a_subfolder(store: Store) -> None:
    store.child("run/x").write_text("y", "text")
    assert store.read_text("run/x/y") == "text"
    assert store.child("run").child("x").read_text("y") == "text"
    assert store.location("run/x/y") == store.child("run/x").location("y")


def test_a_store_survives_pickling(store: Store) -> None:
    store.write_text("x", "text")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.read_text("x") == "text"


def test_a_store_opens_in_another_process(store: Store) -> None:
    store.write_text("x", "text")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read_text('x'))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, check=True)
    assert done.stdout.strip() == b"text"


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "a/.."])
def test_a_path_may_not_leave_the_store(store: Store, path: str) -> None:
    for use in (store.read_bytes, store.exists, store.delete, store.delete_folder, store.files, store.folders,
                lambda p: store.write_text(p, "")):
        with pytest.raises(StorageError, match=r"may not contain '\.\.'"):
            use(path)


def test_a_failed_block_leaves_no_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    store.write_text("x", "old")
    with pytest.raises(ZeroDivisionError), store.writing("x") as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    assert store.read_text("x") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_reaches_the_disk_before_it_has_its_name_and_the_name_before_the_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a name without a content, or nothing: tests/faults/test_power_cut.py cuts it."""
    calls, fsync, replace = list[str](), os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name.partition(".json")[0])
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append(f"rename to {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    store = Store.open(str(tmp_path))
    store.write_text("run/logs/a.json", "{}", durable=False)
    assert calls == ["sync run", f"sync {tmp_path.name}",
                     "rename to a.json"], "the names of new folders, and no content"
    calls.clear()
    store.write_text("run/b.json", "{}")
    assert calls == ["sync b", "rename to b.json", "sync run"]


def test_an_unfinished_write_is_not_listed(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path))
    with store.writing("x") as stream:
        stream.write(b"half")
        assert store.files() == []
        assert not store.exists("x")
    assert names(store) == ["x"]


def test_copying_streams_between_stores(s3: str, tmp_path: Path) -> None:
    here, there = Store.open(str(tmp_path)), Store.open(f"s3://{BUCKET}/copies")
    data = os.urandom(9 << 20)  # more than one piece
    here.write_bytes("a/x", data)
    here.copy_to(there, "a/x", "b/y")
    there.copy_to(here, "b/y", "z")
    assert there.read_bytes("b/y") == here.read_bytes("z") == data


def test_a_missing_bucket_is_a_storage_error_that_names_it(s3: str) -> None:
    with pytest.raises(StorageError, match=r"no-such-bucket.*check its address and permissions"):
        Store.open("s3://no-such-bucket/x").write_text("a", "b")


def test_an_endpoint_with_a_certificate_of_its_own_is_named_with_the_option_and_works_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cert, key = certificate(tmp_path)
    uri = f"s3://{BUCKET}/runs"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(cert))  # which pyarrow does not read
    with s3_server(certificate=(cert, key)):
        assert main(JOB, ["--run.engine", "local", "--run.storage", uri, "--run.tracking-uri", "none"]) == 2
        said = capsys.readouterr().err
        for words in (f"error: storage {uri} cannot be read", "self-signed certificate", "set SSL_CERT_FILE to a file",
                      "?tls_ca_file_path=FILE", "AWS_CA_BUNDLE is not read"):
            assert words in said, said
        with_option = Store.open(f"{uri}?tls_ca_file_path={cert}")
        with_option.child("run").write_text("x", "text")
        code = f"from cluster.core.storage import Store; print(Store.open({uri!r}).read_text('run/x'))"
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "SSL_CERT_FILE": str(cert)},
                              capture_output=True)
        assert done.stdout == b"text\n", done.stderr


@pytest.mark.parametrize(("said", "remedy"), [
    ("curlCode: 60, …; Details: SSL: no alternative certificate subject name matches target host name 'x'",
     "another host's"),
    ("curlCode: 60, …; Details: SSL certificate OpenSSL verify result: certificate has expired (10)", "renewed"),
    ("curlCode: 77, Problem with the SSL CA cert; Details: error adding trust anchors from file: /nowhere.pem",
     "cannot be read"),
])
def test_what_else_can_be_wrong_with_a_certificate_has_its_own_remedy(said: str, remedy: str) -> None:
    for error in (OSError(said), Store.open(f"s3://{BUCKET}/x?region=us-east-1").explain(OSError(said), "x")):
        assert remedy in (str(error) if isinstance(error, StorageError) else tls_remedy(error) or "")
    assert tls_remedy(OSError("curlCode: 7, Couldn't connect to server")) is None


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3://", "s3//:x://y"])
def test_an_unknown_kind_of_uri_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="s3://BUCKET"):
        Store.open(uri)


def test_only_a_local_store_has_local_paths(s3: str, tmp_path: Path) -> None:
    local, remote = Store.open(str(tmp_path)), Store.open(f"s3://{BUCKET}/x")
    assert local.is_local
    assert local.local_path("a") == tmp_path / "a"
    assert not remote.is_local
    with pytest.raises(StorageError, match="not a folder of this machine"):
        remote.local_path("a")


def test_opening_touches_nothing(tmp_path: Path) -> None:
    Store.open(str(tmp_path / "new")).child("x")
    assert not (tmp_path / "new").exists()


def test_home_and_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Store.open("~/x").location("y") == f"{tmp_path}/x/y"
    assert Store.open("x").location() == f"{tmp_path}/x"
    assert Store.open(f"file://{tmp_path}/x").location() == f"{tmp_path}/x"


@pytest.fixture
def denied_folder() -> Iterator[Path]:
    """One that this thread may not write to: root looks at files as another user meanwhile."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own is closed to other users
    folder.chmod(0o555)
    libc = ctypes.CDLL(None)
    libc.setfsuid(65534 if os.geteuid() == 0 else os.geteuid())
    yield folder
    libc.setfsuid(os.geteuid())
    folder.rmdir()


def test_a_folder_without_permission_is_a_storage_error(denied_folder: Path) -> None:
    with pytest.raises(StorageError,
                       match=f"storage {denied_folder} cannot be written .*check its address and permissions"):
        Store.open(str(denied_folder)).write_text("x", "y")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    libc, folder = ctypes.CDLL(None, use_errno=True), tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"this machine mounts no tmpfs: {os.strerror(ctypes.get_errno())}")
    yield folder
    libc.umount2(bytes(folder), 2)


def test_a_full_storage_says_so_keeps_the_old_file_and_works_again_with_room(small_disk: Path) -> None:
    store = Store.open(str(small_disk))
    store.write_bytes("x", b"old" * 1000)
    store.write_bytes("ballast", bytes(900_000))
    with pytest.raises(StorageFullError, match=rf"{small_disk} is full, x was not written: make room") as caught:
        store.write_bytes("x", bytes(800_000))
    assert caught.value.exit_code == 3
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "x"]
    assert store.read_bytes("x") == b"old" * 1000
    store.delete("ballast")
    store.write_bytes("x", bytes(800_000))
    assert store.files()[0].size == 800_000


def test_a_storage_made_read_only_says_so(small_disk: Path) -> None:
    store = Store.open(str(small_disk))
    store.write_text("x", "old")
    remount_read_only = 32 | 1
    assert ctypes.CDLL(None).mount(b"tmpfs", bytes(small_disk), b"tmpfs", remount_read_only, None) == 0
    with pytest.raises(StorageFullError, match="is read-only, x was not written: make room or make it writable"):
        store.write_text("x", "new")
    assert store.read_text("x") == "old"
