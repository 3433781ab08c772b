"""The mark that all tries of one submission share: KubeRay, and other queues, submit a job that has failed again."""

import os
from dataclasses import dataclass

from cluster.core.documents import DocumentError, JsonObject, parse_json

KEY = "trainyard_submission"
"""In the metadata of a Ray job, or a RayJob's `spec.metadata`."""
FOLLOWING_ENDED = 130
"""Ctrl-C while following, as a shell has it: the job goes on."""
LOST_AFTER_S = 60.0
"""A cluster that does not answer for so long is not followed any more."""


@dataclass(frozen=True)
class _JobConfig:
    """What Ray tells a job of itself."""

    metadata: JsonObject | None = None


def mark() -> str | None:
    """Of the submission that this process is a try of; None if it has none (a person has started it)."""
    try:
        job = parse_json(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"), _JobConfig)
    except DocumentError:
        return None
    found = str((job.metadata or {}).get(KEY) or "")
    return found if found.replace("-", "").isalnum() else None


def as_shell(code: int) -> int:
    """A process that a signal has ended has minus its number; a shell says 128 and its number."""
    return code if code >= 0 else 128 - code
