"""`python -m cluster submit JOB -- flags` on a Ray cluster: what `ray job submit` does,
ending with the job's own exit code.

The job is the cluster's, not this process's: Ctrl-C, a closed terminal or a lost connection ends the following only.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

import asyncio
import logging
import os
import shlex
import sys
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.connect import authenticate_for, control_store, probe
from cluster.core import ray_internals, submission
from cluster.core.control_store import Gcs
from cluster.core.errors import ClusterError, ConfigError, StoppedError
from cluster.core.job_command import command_of
from cluster.core.loop_clock import LoopClock
from cluster.core.submission import FOLLOWING_ENDED, LOST_AFTER_S, as_shell
from cluster.local import cluster as local

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

logger = logging.getLogger(__name__)

_ARCHIVE_ENTRY_BYTES = 200
"""What the archive takes for a file beside its content, which is not compressed."""
_SHOWN_FILES = 5
_POLL_S = 0.5


def entrypoint(module: str, flags: Sequence[str]) -> str:
    """The command line, for a shell."""
    return shlex.join(["python", "-m", module, *flags])


def submit(job: str, flags: Sequence[str], *, address: str | None, submission_id: str | None, wait: bool,
           working_dir: str | None = None) -> int:
    """Submits a folder with a command, follows its log, and returns the job's exit code: 0, 1, 2 or 3.

    Raises: ConfigError, ClusterError if it cannot be submitted or the cluster is lost meanwhile.
    """
    command = command_of(job, working_dir)
    line = entrypoint(command.module, [*command.arguments, *flags])
    if command.folder is not None:
        check_upload(command.folder)
    runtime_env = {} if command.folder is None else {"working_dir": str(command.folder)}
    with _authenticated(address) as url:
        client = _client(url)
        try:
            named = client.submit_job(entrypoint=line, submission_id=submission_id, runtime_env=runtime_env,
                                      metadata={submission.KEY: uuid.uuid4().hex})
        except (RuntimeError, OSError, ValueError) as error:
            raise ClusterError(f"the job was not submitted to {url} ({_short(error)}): look at the cluster with "
                               "`python -m cluster status`, or pass another --submission-id") from error
        print(f"submitted {named} to {url}: {line}", flush=True)
        if not wait:
            print(_how_to(named))
            return 0
        return _follow(client, named)


def check_upload(root: Path) -> None:
    """Raises: ConfigError, naming the largest files, if a folder is more than Ray's dashboard takes.

    Ray itself would first copy all of it into an archive below /tmp,
    and then say that a request failed with status 413.
    """
    sizes = {path: path.stat().st_size + _ARCHIVE_ENTRY_BYTES for path in uploaded(root)}
    if (total := sum(sizes.values())) < (most := ray_internals.most_bytes_uploaded()):
        return
    largest = sorted(sizes, key=lambda path: -sizes[path])[:_SHOWN_FILES]
    listed = ", ".join(f"{path.relative_to(root)} ({sizes[path] / 1e6:.1f} MB)" for path in largest)
    raise ConfigError(f"{root} has {total / 1e6:.0f} MB to upload, Ray takes up to {most / 1e6:.0f}; the "
                      f"largest files are {listed}: name what the job does not need in {root / '.rayignore'}, which is "
                      "written like a .gitignore, and hand over data with --data.uri")


def uploaded(root: Path) -> list[Path]:
    """The files that Ray uploads of a folder: without what .gitignore and .rayignore name, `.git`,
    `.venv` and the like."""
    return ray_internals.uploaded(root, logger)


def _follow(client: "JobSubmissionClient", job: str) -> int:
    try:
        return asyncio.run(_to_its_end(client, job))
    except KeyboardInterrupt:
        print(f"\nnot followed any more; the job goes on\n{_how_to(job)}", file=sys.stderr)
        return FOLLOWING_ENDED


@dataclass
class _Log:
    """How many characters of a job's log have been printed."""

    printed: int = 0


async def _to_its_end(client: "JobSubmissionClient", job: str) -> int:
    """Prints the log to its end. A connection that is lost is made again, for a minute; nothing is printed twice."""
    import aiohttp

    log, lost_at, clock = _Log(), None, LoopClock()
    while True:
        before = log.printed
        try:
            await _print_log(client, job, log)
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return _exit_code(info)
            lost_at = None
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            now = clock.look()
            lost_at = now if lost_at is None or log.printed > before else lost_at
            if now - lost_at > LOST_AFTER_S:
                raise ClusterError(f"job {job} cannot be followed any more ({_short(error)}): it may go on; look at "
                                   f"its cluster, then\n{_how_to(job)}") from error
        await asyncio.sleep(_POLL_S)


async def _print_log(client: "JobSubmissionClient", job: str, log: _Log) -> None:
    """What has not been printed yet, until the log ends."""
    seen = 0
    async for text in client.tail_job_logs(job):
        begin = max(0, log.printed - seen)
        seen += len(text)
        if begin < len(text):
            print(text[begin:], end="", flush=True)
            log.printed = seen


def _exit_code(info: "JobDetails") -> int:
    """Ray keeps none of a job that was stopped: it has got SIGTERM, wrote a checkpoint, and ended with 3."""
    if info.driver_exit_code is not None:
        return as_shell(info.driver_exit_code)
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        print("the job was stopped", file=sys.stderr)
        return StoppedError.exit_code
    print(f"the job did not start: {(info.message or 'no reason is known').strip().splitlines()[-1]}", file=sys.stderr)
    return 1


def _how_to(job: str) -> str:
    job = shlex.quote(job)
    return (f"  follow it:  ray job logs --follow {job}\n  stop it:    ray job stop {job}    (it writes a checkpoint; "
            "the same command goes on from there)")


@contextmanager
def _authenticated(address: str | None) -> Generator[str]:
    """The URL of the dashboard that takes jobs; inside the block, the token is used that fits it."""
    wanted = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    cluster = local.current()
    if cluster is not None and cluster.nodes and wanted in (None, "local", "auto", cluster.address,
                                                            cluster.dashboard_url):
        with authenticate_for(cluster.address):
            yield cluster.dashboard_url
    elif wanted is None or wanted == "local":
        raise ClusterError("there is no cluster to submit to: start one with `python -m cluster up`, set "
                           "RAY_API_SERVER_ADDRESS (http://HEAD:8265), or give --address")
    else:
        yield wanted if "://" in wanted else _dashboard_of(control_store(wanted))


def _dashboard_of(address: str) -> str:
    probe(address)
    url = Gcs(address).read(b"dashboard", b"dashboard").decode()
    if not url:
        raise ClusterError(f"the cluster at {address} has no dashboard, which takes jobs: restart it with one")
    return f"http://{url}"


def _client(url: str) -> "JobSubmissionClient":
    """The address is set in the environment for the time of the call: Ray takes that before what it is told."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return JobSubmissionClient(url)
    except (OSError, RuntimeError, AuthenticationError) as error:
        if not isinstance(error, OSError) or getattr(error, "response", None) is not None:  # it answered, with an error
            raise ClusterError(f"what listens at {url} does not take jobs from here ({_short(error)}): set "
                               "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's own token, "
                               "or give --address") from error
        raise ClusterError(f"no Ray dashboard answers at {url}: start the cluster, or give --address "
                           "http://HEAD:8265") from error
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
