"""Datasets of the Hugging Face Hub, `hf://datasets/OWNER/NAME[@REVISION][/PATH]`: read at one commit, never written.

A revision is a branch, a tag or a commit, and may move: `pin` asks once what commit it is, and every later read names
that commit. HF_ENDPOINT and HF_TOKEN are huggingface_hub's own: where the Hub is, and who asks.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.core.errors import DataError, UserError

SCHEME = "hf://"
_PLACE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]+))?(?:/(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ANSWER_S = 20.0
_CARDS = re.compile(r"README\.md|dataset_infos\.json", re.IGNORECASE)
"""What describes a dataset, and is none of its data."""


@dataclass(frozen=True)
class HubPlace:
    """What a URI names."""

    repository: str
    revision: str = "main"
    path: str = ""

    @staticmethod
    def of(uri: str) -> "HubPlace":
        """Raises: DataError."""
        found = _PLACE.fullmatch(uri.rstrip("/"))
        if found is None:
            raise DataError(f"data {uri!r} names no dataset of the Hub: write hf://datasets/OWNER/NAME, with @REVISION "
                            "behind NAME and /PATH after it where you want another than main or a part")
        repository, revision, path = found.groups()
        return HubPlace(repository, unquote(revision or "main"), path or "")

    @property
    def is_pinned(self) -> bool:
        return _COMMIT.fullmatch(self.revision) is not None

    @property
    def root(self) -> str:
        """The URI of all of it, at this revision."""
        return f"{SCHEME}datasets/{self.repository}@{quote(self.revision, safe='')}"

    def at(self, commit: str) -> str:
        """The URI of the same at a commit."""
        return "/".join(filter(None, (HubPlace(self.repository, commit).root, self.path)))


def is_hub(uri: str) -> bool:
    return uri.startswith(SCHEME)


def pin(uri: str, commits: Mapping[str, str]) -> str:
    """The URI at the commit that its revision is. commits: of the revisions that were asked for already, by `root`.
    Raises: DataError; UserError where the Hub does not answer."""
    place = HubPlace.of(uri)
    if place.is_pinned:
        return uri
    return place.at(commits.get(place.root) or _commit(place))


def without_commit(uri: str) -> str:
    """What a file is called whatever the commit is that it is read at."""
    return re.sub(r"^(hf://datasets/[^/@]+/[^/@]+)@[^/]+", r"\1", uri)


def open_hub(uri: str) -> tuple[pafs.FileSystem, str]:
    """A file system of pyarrow's, and where in it the URI is. Touches nothing. Raises: DataError."""
    from huggingface_hub import HfFileSystem

    place = HubPlace.of(uri)
    root = place.at(place.revision).removeprefix(SCHEME)
    return pafs.PyFileSystem(_Handler(HfFileSystem(endpoint=_endpoint()))), root


def hub_files(fs: pafs.FileSystem, root: str, *, recursive: bool) -> list[tuple[str, int, str]]:
    """(path, size, hash of its content) of each file below; none if there is nothing. recursive: of all folders below,
    but for what describes the dataset. Raises: OSError, DataError, UserError."""
    try:
        with _reached(f"{SCHEME}{root}"):
            found: Mapping[str, Any] = fs.handler.fs.find(root, maxdepth=None if recursive else 1, detail=True)
    except FileNotFoundError:
        return []
    files = [(path, about) for path, about in found.items() if about["type"] == "file" and path != root]
    return [(path, int(about["size"]), about["lfs"].sha256 if about.get("lfs") else str(about.get("blob_id", "")))
            for path, about in files if not (recursive and _CARDS.fullmatch(HubPlace.of(f"{SCHEME}{path}").path))]


# ── what is asked of the library ──
def _endpoint() -> str | None:
    """As it is now: the library looks once, when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _commit(place: HubPlace) -> str:
    from huggingface_hub import HfApi

    with _reached(place.at(place.revision)):
        api = HfApi(endpoint=_endpoint())
        return str(api.dataset_info(place.repository, revision=place.revision, timeout=_ANSWER_S).sha)


@contextmanager
def _reached(uri: str) -> Generator[None]:
    """Says what it is that the Hub refuses, and what to do. Raises: DataError, UserError, OSError."""
    import httpx2

    try:
        yield
    except (httpx2.HTTPError, OSError, ValueError) as error:
        _explain(error, HubPlace.of(uri))


def _explain(error: Exception, place: HubPlace) -> NoReturn:
    from huggingface_hub import errors

    hub = _endpoint() or "https://huggingface.co"
    dataset, page = f"data {place.at(place.revision)!r}", f"{hub}/datasets/{place.repository}"
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    token = ("the token in HF_TOKEN is one of an account that may read it" if os.environ.get("HF_TOKEN")
             else "HF_TOKEN is set to a token that may read it")
    if isinstance(cause, errors.GatedRepoError):
        raise DataError(f"{dataset}: the dataset is gated: ask for access at {page}, and see to it that {token}, on "
                        "every node") from error
    if isinstance(cause, errors.RevisionNotFoundError):
        raise DataError(f"{dataset}: {place.repository} has no branch, tag or commit {place.revision!r}: take one of "
                        f"those at {page}/branches, or leave @{place.revision} out for main") from error
    if isinstance(cause, errors.RepositoryNotFoundError | errors.HFValidationError):
        raise DataError(f"{dataset}: there is no dataset {place.repository} at {hub}, or it is private: check OWNER "
                        f"and NAME, or see to it that {token}, on every node") from error
    if status in (401, 403):
        raise DataError(f"{dataset}: {hub} refuses it ({status}): see to it that {token}, on every node") from error
    if isinstance(error, FileNotFoundError):
        raise error
    if isinstance(cause, errors.OfflineModeIsEnabled):
        raise UserError(f"{dataset}: HF_HUB_OFFLINE keeps huggingface_hub from the network: unset it, or download the "
                        "dataset and pass its folder") from error
    why = f"answers {status}" if status else f"cannot be reached ({str(error).strip() or type(error).__name__})"
    raise UserError(f"{dataset}: {hub} {why}: check the network, HTTPS_PROXY and HF_ENDPOINT, and run it again; or "
                    "download the dataset and pass its folder") from error


class _Handler(pafs.FSSpecHandler):
    """The same without a way to change a repository. What goes wrong is said of the dataset."""

    def get_file_info(self, paths: list[str]) -> Any:
        with _reached(f"{SCHEME}{paths[0]}"):
            return super().get_file_info(paths)

    def get_file_info_selector(self, selector: Any) -> Any:
        with _reached(f"{SCHEME}{selector.base_dir}"):
            return super().get_file_info_selector(selector)

    def open_input_file(self, path: str) -> Any:
        with _reached(f"{SCHEME}{path}"):
            return pa.PythonFile(_File(self.fs.open(path, "rb"), f"{SCHEME}{path}"), mode="r")

    open_input_stream = open_input_file

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise OSError("datasets of the Hub are only read here")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _refuse
    move = copy_file = open_output_stream = open_append_stream = _refuse


class _File:
    """An open file that says what goes wrong while it is read."""

    def __init__(self, file: Any, uri: str) -> None:
        self._file, self._uri = file, uri

    def read(self, size: int = -1) -> bytes:
        with _reached(self._uri):
            return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
