"""A small server on loopback that speaks the part of the Hugging Face Hub's API that reading a dataset asks for.

    with hub_server() as hub:                     # HF_ENDPOINT is set to it meanwhile
        hub.commit("owner/name", {"a.jsonl": b"…"})

It is no Hub: it has datasets, branches and commits, lists trees in pages, and sends ranges of files. As the real one it
answers 401 to who may not know whether a dataset is there, and 403 where a gate is closed.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
_PAGE = 2
"""Entries of one answer: the real one has 1,000."""


@dataclass
class Hub:
    """asked: (path, who asked: the header Authorization) of every request, in order."""

    url: str = ""
    commits: dict[str, dict[str, Files]] = field(default_factory=dict[str, dict[str, Files]])
    """By dataset and commit."""
    branches: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    """By dataset and name: a commit."""
    tokens: dict[str, str] = field(default_factory=dict[str, str])
    """Of datasets that are private."""
    gated: set[str] = field(default_factory=set[str])
    broken: dict[str, int] = field(default_factory=dict[str, int])
    """By a word of a path: the status that it is answered with."""
    asked: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def commit(self, dataset: str, files: Files, branch: str = "main") -> str:
        """Puts files where a branch was, and moves it there. Returns the commit."""
        known = self.commits.setdefault(dataset, {})
        name = hashlib.sha1(f"{dataset} {len(known)}".encode()).hexdigest()
        known[name] = files
        self.branches.setdefault(dataset, {})[branch] = name
        return name

    def files(self, dataset: str, revision: str) -> Files | None:
        known = self.commits[dataset]
        return known.get(self.branches[dataset].get(revision, revision))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(asked.get("paths"))

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _answer(self, paths: list[str] | None = None) -> None:
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        who = self.headers.get("Authorization", "")
        found = re.fullmatch(r"(?:/api)?/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|resolve)/([^/]+)/?(.*))?",
                             path)
        if found is None:  # such as /api/agent-harnesses, which the library asks for by itself
            return self._refuse(404, "NotFound", "No such page")
        self.hub.asked.append((path, who))
        dataset, what, revision, below = found[1], found[2], unquote(found[3] or "main"), unquote(found[4] or "")
        if status := next((status for word, status in self.hub.broken.items() if word in path), None):
            return self._send(status, {"error": "broken"})
        if dataset not in self.hub.commits or who != self._wanted(dataset, who):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if dataset in self.hub.gated:
            return self._refuse(403, "GatedRepo", "Access to the dataset is restricted")
        files = self.hub.files(dataset, revision)
        if files is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if what == "resolve":
            return self._send_file(files, below)
        if what == "tree":
            return self._send_tree(files, below, query)
        if paths is not None:
            return self._send(200, [_entry(each, files[each]) for each in paths if each in files])
        commit = self.hub.branches[dataset].get(revision, revision)
        return self._send(200, {"id": dataset, "sha": commit, "siblings": [], "tags": [], "private": False,
                                "downloads": 0, "likes": 0})

    def _wanted(self, dataset: str, who: str) -> str:
        token = self.hub.tokens.get(dataset)
        return who if token is None else f"Bearer {token}"

    def _send_tree(self, files: Files, below: str, query: dict[str, list[str]]) -> None:
        prefix = f"{below}/" if below else ""
        inside = {path: data for path, data in sorted(files.items()) if path.startswith(prefix)}
        if below and not inside:
            return self._refuse(404, "EntryNotFound", f"{below} does not exist")
        entries = [_entry(path, data) for path, data in inside.items()]
        folders = {"/".join(path.split("/")[:depth]) for path in inside for depth in range(1, path.count("/") + 1)}
        entries += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": path}
                    for path in sorted(folders) if path.startswith(prefix)]
        if query.get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(prefix)]
        first = int(query.get("cursor", ["0"])[0])
        more: dict[str, str] = {}
        if first + _PAGE < len(entries):
            here = urlsplit(self.path)
            asked = "&".join(f"{name}={values[0]}" for name, values in query.items() if name != "cursor")
            more["Link"] = f'<{self.hub.url}{here.path}?{asked}&cursor={first + _PAGE}>; rel="next"'
        return self._send(200, entries[first:first + _PAGE], more)

    def _send_file(self, files: Files, path: str) -> None:
        if path not in files:
            return self._refuse(404, "EntryNotFound", f"{path} does not exist")
        data = files[path]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send_bytes(200, data)
        first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        return self._send_bytes(206, data[first:last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._send(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as the Hub lists it, its id that of a Git blob; a large one is kept beside the repository (LFS)."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data),
                             "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
    if path.endswith(".parquet"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


@contextmanager
def hub_server() -> Generator[Hub]:
    """Yields the server's state. HF_ENDPOINT leads to it, also for processes that are started meanwhile."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    before = {name: os.environ.pop(name, None) for name in ("HF_ENDPOINT", "HF_TOKEN")}
    os.environ["HF_ENDPOINT"] = hub.url
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        del os.environ["HF_ENDPOINT"]
        os.environ.pop("HF_TOKEN", None)
        os.environ.update({name: value for name, value in before.items() if value is not None})
