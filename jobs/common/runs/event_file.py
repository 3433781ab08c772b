"""TensorBoard's event files of a run, by `--run.tensorboard`: training loss, learning rate and evaluations by step.

    tensorboard --logdir ~/trainyard      # every run and every trial of a search, by its folder

Each start of a driver writes a file of its own, which begins with the whole history so far. TensorBoard takes what
follows an event `SessionLog.START` in place of all that it has of that step and later ones, but for the first such
event, which therefore begins the first file, too: so neither a run that goes on nor steps that are repeated after a
failure show any step twice. The times of such points are those of the later writing.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.core.documents import JsonObject
from cluster.core.errors import StorageError
from cluster.core.storage import Store

FOLDER = "tensorboard"
_UPLOAD_EVERY_S = 10.0
_NO_SERIES = ("step", "epoch")
Log = Callable[[Sequence[JsonObject]], None]


@contextmanager
def event_file(wanted: bool, store: Store, history: Sequence[JsonObject], say: Callable[[str], None]) -> Generator[Log]:
    """Gives what takes new rows of the history; it does nothing where no events are wanted.

    store: the run's folder. An object store gets the file whole, after each evaluation and every 10 s. What cannot be
    written is said once, and training goes on.
    """
    if not wanted:
        yield lambda rows: None
        return
    with tempfile.TemporaryDirectory(prefix="trainyard-events-") as temporary:
        kept = _KeptFile(store, Path(temporary), history, say)
        try:
            yield kept.log
        finally:
            kept.close()


class _KeptFile:
    """A file of events, on its way to where it is kept, as long as that can be written."""

    def __init__(self, store: Store, temporary: Path, history: Sequence[JsonObject],
                 say: Callable[[str], None]) -> None:
        self._store, self._say, self._uploaded_at = store, say, time.monotonic()
        self._file: EventFile | None = None
        with self._said():
            self._file = EventFile(store.local_path(FOLDER) if store.is_local else temporary, history)

    def log(self, rows: Sequence[JsonObject]) -> None:
        if self._file is None or not rows:
            return
        with self._said():
            self._file.log(rows)
            evaluated = any(row["kind"] == "evaluation" for row in rows)
            if evaluated or time.monotonic() - self._uploaded_at > _UPLOAD_EVERY_S:
                self._upload(self._file.path)

    def close(self) -> None:
        if self._file is not None:
            with self._said():
                self._file.close()
                self._upload(self._file.path)

    def _upload(self, path: Path) -> None:
        if not self._store.is_local:
            self._store.write_bytes(f"{FOLDER}/{path.name}", path.read_bytes(), durable=False)
            self._uploaded_at = time.monotonic()

    @contextmanager
    def _said(self) -> Generator[None]:
        try:
            yield
        except (OSError, StorageError) as error:
            self._file = None
            self._say(f"--run.tensorboard: {error}: no more events are written, and training goes on")


class EventFile:
    """A new file in a folder, in which TensorBoard finds the rows of a run's history."""

    def __init__(self, folder: Path, history: Sequence[JsonObject]) -> None:
        from tensorboardX.event_file_writer import EventsWriter  # 1 s
        from tensorboardX.proto import event_pb2, summary_pb2

        self._event, self._summary = event_pb2, summary_pb2
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f".{time.time_ns()}"
        self._writer = EventsWriter(str(folder / "events"), suffix)
        (self.path,) = folder.glob(f"events.out.tfevents.*{suffix}")
        self._rows = {(row["step"], row["kind"]): row for row in history}
        self._write_from(0)
        self._writer.flush()

    def log(self, rows: Sequence[JsonObject]) -> None:
        """Writes rows, which take the place of earlier ones of their step; the file has all of them then."""
        for row in rows:
            key = (row["step"], row["kind"])
            in_order = key not in self._rows and row["step"] >= max((step for step, _ in self._rows), default=0)
            self._rows[key] = row
            if in_order:
                self._write(row)
            else:
                self._write_from(row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write_from(self, step: int) -> None:
        """Takes back what the files say of a step and of later ones, and says it again."""
        start = self._event.SessionLog(status=self._event.SessionLog.START)
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=step, session_log=start))
        for key in sorted(self._rows):
            if key[0] >= step:
                self._write(self._rows[key])

    def _write(self, row: JsonObject) -> None:
        values = [self._summary.Summary.Value(tag=_tag(name), simple_value=float(value)) for name, value in row.items()
                  if isinstance(value, int | float) and name not in _NO_SERIES]
        self._writer.write_event(self._event.Event(wall_time=time.time(), step=row["step"],
                                                   summary=self._summary.Summary(value=values)))


def _tag(name: str) -> str:
    """TensorBoard puts series beside each other whose names begin alike: `validation_loss` is `validation/loss`."""
    return name.replace("_", "/", 1) if name.startswith(("validation_", "train_")) else name
