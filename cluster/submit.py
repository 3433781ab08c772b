"""`python -m cluster submit JOB -- flags` on a Ray cluster: what `ray job submit` does, ending with the job's own exit code.

The job is the cluster's, not this process's: Ctrl-C, a closed terminal or a lost connection ends the following only.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
import os
import shlex
import sys
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import local, submission
from cluster.connect import authenticate_for, control_store, probe
from cluster.errors import ClusterError, ConfigError, StoppedError
from cluster.gcs import Gcs
from cluster.loop_clock import LoopClock

FOLLOWING_ENDED = 130
"""Ctrl-C while following, as a shell has it: the job goes on."""

_POLL_S = 0.5
LOST_AFTER_S = 60.0
"""A cluster that does not answer for so long is not followed any more."""


def module_of(job: str) -> tuple[str, Path]:
    """The module that a job's name means (`mlp`, `tuning.mlp`), and the repository that holds it: the current folder, if it is one.

    Raises: ConfigError with the names that there are.
    """
    roots = [root for root in (Path.cwd(), Path(__file__).parents[1]) if (root / "jobs" / "common").is_dir()]
    if not roots:
        raise ConfigError("there is no repository here to submit from: run this in the folder that holds jobs/")
    root = roots[0]
    trained = sorted(path.parent.name for path in root.glob("jobs/*/__main__.py"))
    named = {job: f"jobs.{job}" for job in trained} | {
        f"tuning.{job}": f"tuning.{job}" for job in trained if (root / "tuning" / f"{job}.py").exists()}
    module = named.get(job.removeprefix("jobs."))
    if module is None:
        raise ConfigError(f"there is no job {job!r}: give one of {', '.join(named)}")
    return module, root


def entrypoint(module: str, flags: Sequence[str]) -> str:
    """The command line, for a shell."""
    return shlex.join(["python", "-m", module, *flags])


def submit(job: str, flags: Sequence[str], *, address: str | None, submission_id: str | None, wait: bool) -> int:
    """Submits the repository with a command, follows its log, and returns the job's exit code: 0, 1, 2 or 3.

    Raises: ConfigError, ClusterError if it cannot be submitted or the cluster is lost meanwhile.
    """
    module, root = module_of(job)
    with _authenticated(address) as url:
        client = _client(url)
        try:
            named = client.submit_job(entrypoint=entrypoint(module, flags), submission_id=submission_id,
                                      runtime_env={"working_dir": str(root)}, metadata={submission.KEY: uuid.uuid4().hex})
        except (RuntimeError, OSError, ValueError) as error:
            raise ClusterError(f"the job was not submitted to {url} ({_short(error)}): look at the cluster with `python -m cluster "
                               "status`, or pass another --submission-id") from error
        print(f"submitted {named} to {url}: {entrypoint(module, flags)}", flush=True)
        if not wait:
            print(_how_to(named))
            return 0
        return _follow(client, named)


def _follow(client: Any, job: str) -> int:
    try:
        return asyncio.run(_to_its_end(client, job))
    except KeyboardInterrupt:
        print(f"\nnot followed any more; the job goes on\n{_how_to(job)}", file=sys.stderr)
        return FOLLOWING_ENDED


@dataclass
class _Log:
    """How many characters of a job's log have been printed."""

    printed: int = 0


async def _to_its_end(client: Any, job: str) -> int:
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
                raise ClusterError(f"job {job} cannot be followed any more ({_short(error)}): it may go on; look at its cluster, "
                                   f"then\n{_how_to(job)}") from error
        await asyncio.sleep(_POLL_S)


async def _print_log(client: Any, job: str, log: _Log) -> None:
    """What has not been printed yet, until the log ends."""
    seen = 0
    async for text in client.tail_job_logs(job):
        begin = max(0, log.printed - seen)
        seen += len(text)
        if begin < len(text):
            print(text[begin:], end="", flush=True)
            log.printed = seen


def _exit_code(info: Any) -> int:
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


def as_shell(code: int) -> int:
    """A process that a signal has ended has minus its number; a shell says 128 and its number."""
    return code if code >= 0 else 128 - code


def _how_to(job: str) -> str:
    return (f"  follow it:  ray job logs --follow {job}\n  stop it:    ray job stop {job}    (it writes a checkpoint; the same "
            "command goes on from there)")


@contextmanager
def _authenticated(address: str | None) -> Generator[str]:
    """The URL of the dashboard that takes jobs; inside the block, the token is used that fits it."""
    wanted = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    cluster = local.current()
    if cluster is not None and cluster.nodes and wanted in (None, "local", "auto", cluster.address, cluster.dashboard_url):
        with authenticate_for(cluster.address):
            yield cluster.dashboard_url
    elif wanted is None or wanted == "local":
        raise ClusterError("there is no cluster to submit to: start one with `python -m cluster up`, set RAY_API_SERVER_ADDRESS "
                           "(http://HEAD:8265), or give --address")
    else:
        yield wanted if "://" in wanted else _dashboard_of(control_store(wanted))


def _dashboard_of(address: str) -> str:
    probe(address)
    url = Gcs(address).read(b"dashboard", b"dashboard").decode()
    if not url:
        raise ClusterError(f"the cluster at {address} has no dashboard, which takes jobs: restart it with one")
    return f"http://{url}"


def _client(url: str) -> Any:
    """The address is set in the environment for the time of the call: Ray takes that before what it is told."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return JobSubmissionClient(url)
    except (OSError, RuntimeError, AuthenticationError) as error:
        if not isinstance(error, OSError) or getattr(error, "response", None) is not None:  # it answered, with an error
            raise ClusterError(f"what listens at {url} does not take jobs from here ({_short(error)}): set RAY_AUTH_MODE=token and "
                               "RAY_AUTH_TOKEN_PATH to the file with the cluster's own token, or give --address") from error
        raise ClusterError(f"no Ray dashboard answers at {url}: start the cluster, or give --address http://HEAD:8265") from error
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
