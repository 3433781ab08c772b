"""What was refused stays refused while the same submission is tried again: KubeRay, and other queues,
retry whatever fails.

A config or data that cannot be (exit code 2) would be found out again only after the data had been read, each time. So
the first try leaves its message in the storage, beside the runs, and the next one ends with it at once, before anything
is joined or read. Only for submissions that carry a mark of their own in their metadata (`python -m cluster submit`
gives one; a RayJob's `spec.metadata` may): a person who runs a command again has mended something,
and is never held up.
"""

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass

from cluster.core import submission
from cluster.core.control_store import within
from cluster.core.documents import load_json
from cluster.core.errors import ConfigError, DataError, NewerVersionError, TrainyardError, UserError
from cluster.core.storage import Store
from jobs.common.config import RunConfig
from jobs.common.runs.run_folder import open_storage

HOLDS_S = 3600.0
"""After this a marked submission is tried anew:
a mark written into a manifest by hand is the same in every use of it."""

_CLOCKS_DIFFER_S = 60.0
"""Between hosts. A refusal from further in the future was left before a clock was set back,
and could hold for years."""
_TIMEOUT_S = 3.0
_FOLDER = ".refused"
_LASTING = (ConfigError, DataError, NewerVersionError)
"""Not a busy cluster, a server that is down or another run of the name: those may be well the next time."""


@dataclass(frozen=True, kw_only=True)
class _Refused:
    """What an earlier try has left. at: Unix seconds."""

    at: float
    message: str


def refuse_again(run: RunConfig) -> None:
    """Raises: UserError with the message of an earlier try of the same submission, if that was refused."""
    mark = submission.mark()
    if mark is None:
        return
    found = _Refused(at=-HOLDS_S, message="")
    with suppress(TrainyardError, OSError, ValueError):  # what cannot be read is tried
        found = within(_TIMEOUT_S, lambda: load_json(_open(run), _path(run, mark), _Refused), TimeoutError())
    if -_CLOCKS_DIFFER_S < time.time() - found.at < HOLDS_S:
        when = time.strftime("%H:%M:%S", time.gmtime(found.at))
        raise UserError(f"{found.message}\n(found at {when} UTC by an earlier try of this same submission, so nothing "
                        "was tried again: submit it anew when that is mended)")


def remember(run: RunConfig, error: TrainyardError) -> None:
    """Leaves the message for the next try; nothing where the submission has no mark, or another try may do better."""
    mark = submission.mark()
    if mark is None or not _lasts(error):
        return
    record = json.dumps({"at": time.time(), "run": run.name, "message": str(error)})
    with suppress(TrainyardError, OSError):  # the error itself is what counts
        within(_TIMEOUT_S, lambda: _open(run).write_text(_path(run, mark), record, durable=False), TimeoutError())


def _lasts(error: TrainyardError) -> bool:
    """Whether another try finds the same: not where a file system or an object store failed while data was read."""
    cause = error.__cause__
    return isinstance(error, _LASTING) and (not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError))


def _path(run: RunConfig, mark: str) -> str:
    """One for each run of a submission: its entrypoint may start several."""
    return f"{_FOLDER}/{mark}-{hashlib.sha256(run.name.encode()).hexdigest()[:16]}.json"


def _open(run: RunConfig) -> Store:
    return open_storage(run.storage)
