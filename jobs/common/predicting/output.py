"""The folder that answers are written to, and what in it is whole, whoever dies meanwhile.

    OUT/part-000000.parquet …   the rows of a piece, with their answers; each appears whole
        _failed/failed.parquet  rows that have no answer: file, row, reason
        _manifest.json          last: what the answers are of, size and sha256 of every file; it makes OUT complete
        _work/plan.json, 000000.json …   until then: what was begun, and what each piece has come to

A piece is done when its record in `_work` is written, after its file; whoever does it again writes the same bytes.
Names that begin with `_` are no data to what reads a folder of Parquet.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.core.documents import DocumentError, JsonObject, load_json
from cluster.core.errors import ConfigError, NewerVersionError, StorageError
from cluster.core.storage import Store

MANIFEST, WORK, FAILED = "_manifest.json", "_work", "_failed/failed.parquet"
_PLAN = f"{WORK}/plan.json"
_PART = re.compile(r"part-\d{6,}\.parquet")
_TRIES = ".tries"
_ROW_GROUP = 1 << 16
_FAILED_SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
BadRow = tuple[str, int, str]
"""The file, the number of the row in it, from 0, and why it has no answer."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides every byte of the answers."""

    model: str
    """The digest of its manifest."""
    data: str
    """The fingerprint of the rows."""
    options: JsonObject
    """What was chosen, by flag."""
    batch_rows: int
    """That go through the model together."""
    pieces: int
    rows: int
    version: int = 1

    def differences(self, other: "Plan") -> list[str]:
        """What is not the same, in words. batch_rows alone is the plan's own: it was measured."""
        found = [what for what, same in (("another model", self.model == other.model),
                                         ("other data", self.data == other.data),
                                         ("another number of pieces", self.pieces == other.pieces)) if not same]
        return found + [f"--{name} {self.options.get(name)}, not {other.options.get(name)}"
                        for name in {**self.options, **other.options}
                        if self.options.get(name) != other.options.get(name)]


@dataclass(frozen=True)
class Record:
    """What a piece has come to."""

    rows: int
    size: int
    sha256: str
    failed: tuple[BadRow, ...] = ()
    drift: Mapping[str, tuple[int, ...]] | None = None
    """Rows by the bins of each feature of the model's reference."""


@dataclass(frozen=True)
class Output:
    """See the module."""

    store: Store

    def find(self) -> tuple[Plan | None, bool]:
        """The plan of what is there, and whether that is complete. Raises: ConfigError for a folder of something else;
        NewerVersionError."""
        for path, complete in ((MANIFEST, True), (_PLAN, False)):
            try:
                found = load_json(self.store, path)
            except FileNotFoundError:
                continue
            except DocumentError as error:
                raise StorageError(f"{self.store.location(path)} is damaged ({error}): pass --overwrite, or another "
                                   "--out") from error
            stored = found["plan"] if complete else found
            if stored.get("version") != Plan.version:
                raise NewerVersionError(f"{self.store.location()} was written by another version of Trainyard: pass "
                                        "another --out, or use that version")
            return Plan(**stored), complete
        if self._is_file() or self.store.files():
            raise ConfigError(f"--out {self.store.location()} holds something else, which is left as it is: name a new "
                              "folder")
        return None, False

    def begin(self, plan: Plan) -> None:
        """Raises: StorageError, StorageFullError."""
        try:
            self.store.write_text(_PLAN, json.dumps(asdict(plan)))
        except OSError as error:
            raise StorageError(f"--out {self.store.location()} cannot be written ({error.strerror}): name a folder "
                               "that can be") from error

    def clear(self) -> None:
        """Deletes what is written here, the manifest first."""
        self.store.delete(MANIFEST)
        for file in self.store.files(recursive=False):
            if _PART.fullmatch(file.path):
                self.store.delete(file.path)
        self.store.delete_folder(WORK)
        self.store.delete_folder(FAILED.partition("/")[0])

    def tried(self, number: int) -> int:
        """Counts how often a piece was begun since `forget_tries`, and not done: this is the time so many."""
        path = f"{WORK}/{number:06d}{_TRIES}"
        times = int(self.store.read_text(path) or 0) + 1 if self.store.exists(path) else 1
        self.store.write_text(path, str(times), durable=False)
        return times

    def forget_tries(self) -> None:
        for file in self.store.files(WORK):
            if file.path.endswith(_TRIES):
                self.store.delete(file.path)

    def record(self, number: int) -> Record | None:
        """What a piece has come to; None: it is not done."""
        try:
            return load_json(self.store, _record_file(number), Record, most_bytes=1 << 30)
        except (FileNotFoundError, DocumentError):
            return None

    def done(self) -> dict[int, Record]:
        """All pieces that are, by number, if their files are as they were written."""
        sizes = {file.path: file.size for file in self.store.files(recursive=False)}
        names = [file.path.rpartition("/")[2].removesuffix(".json") for file in self.store.files(WORK)]
        found = {int(name): self.record(int(name)) for name in names if name.isdigit()}
        return {number: record for number, record in found.items()
                if record is not None and sizes.get(_part_file(number)) == record.size}

    def write(self, number: int, table: Any, failed: Sequence[BadRow],
              drift: Mapping[str, tuple[int, ...]] | None) -> Record:
        """The rows of a piece, and then that they are there. table: an Arrow table."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=_ROW_GROUP)
        data = sink.getvalue()
        made = Record(table.num_rows, data.size, hashlib.sha256(data).hexdigest(), tuple(failed), drift)
        with self.store.writing(_part_file(number)) as stream:
            stream.write(data)
        self.store.write_text(_record_file(number), json.dumps(asdict(made)), durable=False)  # else it is made again
        return made

    def finish(self, plan: Plan, records: Mapping[int, Record], about: JsonObject) -> None:
        """Makes it complete. about: more for the manifest."""
        with self.store.writing(FAILED) as stream, pq.ParquetWriter(stream, _FAILED_SCHEMA) as writer:
            for number in sorted(records):
                if records[number].failed:
                    columns = zip(*records[number].failed, strict=True)
                    writer.write_table(pa.Table.from_arrays([pa.array(each) for each in columns],
                                                            schema=_FAILED_SCHEMA))
        files = [{"path": _part_file(number), "rows": records[number].rows, "size": records[number].size,
                  "sha256": records[number].sha256} for number in sorted(records)]
        whole = {"plan": asdict(plan), "rows": sum(each.rows for each in records.values()),
                 "failed": sum(len(each.failed) for each in records.values()), **about, "files": files}
        self.store.write_text(MANIFEST, json.dumps(whole, indent=1))
        self.store.delete_folder(WORK)

    def manifest(self) -> JsonObject:
        """Of what is complete."""
        return load_json(self.store, MANIFEST, most_bytes=1 << 30)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """The rows of what is complete, a file after another. Raises: FileNotFoundError."""
        for file in self.manifest()["files"]:
            with self.store.reading(file["path"]) as stream:
                yield pq.read_table(stream, columns=columns, use_threads=False)

    def _is_file(self) -> bool:
        folder, _, name = self.store.uri.rstrip("/").rpartition("/")
        return bool(name) and Store.open(folder or "/").exists(name)


def _part_file(number: int) -> str:
    return f"part-{number:06d}.parquet"


def _record_file(number: int) -> str:
    return f"{WORK}/{number:06d}.json"
