"""The mark that all tries of one submission share: KubeRay, and other queues, submit a job that has failed again."""

import json
import os
from typing import Any

KEY = "trainyard_submission"
"""In the metadata of a Ray job, or a RayJob's `spec.metadata`."""


def mark() -> str | None:
    """Of the submission that this process is a try of; None if it has none (a person has started it)."""
    try:
        metadata: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata") or {}
    except ValueError:
        return None
    found = str(metadata.get(KEY) or "")
    return found if found.replace("-", "").isalnum() else None
