"""What of a config decides the result: whether a run may go on with another one, and which."""

import hashlib
import json
from collections.abc import Sequence
from typing import cast

from cluster.core.documents import JsonObject
from cluster.core.storage import Store
from jobs.common.command_line import Overrides, current_names, flatten

_AS_EVER = (None, False, (), "auto", "refuse", "keep", "report", "ignore", "same-workers")
"""What a choice that earlier versions did not give is by default: what was done then. 0 is as False."""
_OF_LATER_TASKS = ("data.form", "data.too_long", "train.loss_on", "eval.answers", "prefer.")
"""Options of tasks that earlier versions did not have, whose runs they say nothing about."""
_INDIFFERENT = ("run.", "data.cache_", "data.bad_rows_most", "data.piece_mb", "data.keep", "data.check",
                "model.init_from", "optim.extended_at")
"""What may change between attempts, but for those of `_DECISIVE`. Which weights a model begins with,
`model.init_digest` says; what a run extends, its record."""

_DECISIVE = ("run.seed", "run.exact")
_PLACES = ("data.uri", "data.val_uri", "data.test_uri")


def differences(old: Overrides, new: Overrides) -> list[str]:
    """What decides the result and is not the same, one line a field: `optim.lr: 0.1 -> 0.2`."""
    after = flatten(new)
    before = current_names(flatten(old), after)
    began = before.get("model.init_digest") == after.get("model.init_digest")
    keys = [key for key in sorted({*before, *after}) if _is_decisive(key) or (key == "model.init_from" and not began)]
    before |= {k: after[k] for k in keys
               if k not in before and (after[k] in _AS_EVER or k.startswith(_OF_LATER_TASKS))}
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys
            if _plain_value(k, before.get(k)) != _plain_value(k, after.get(k))]


def decisive_fingerprint(config: JsonObject) -> str:
    """Of all that decides the result."""
    decisive = {key: value for key, value in sorted(flatten(config).items()) if _is_decisive(key)}
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _is_decisive(field_name: str) -> bool:
    return field_name in _DECISIVE or not field_name.startswith(_INDIFFERENT)


def _plain_value(field_name: str, value: object) -> object:
    """A place may be spelt in several ways."""
    if field_name in _PLACES and isinstance(value, str) and "/" in value:
        return Store.open(value).location()
    return list(cast(Sequence[object], value)) if isinstance(value, tuple | list) else value
