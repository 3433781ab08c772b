"""What of a config decides the result: whether a run may go on with another one, and which."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from cluster.core.storage import Store
from jobs.common.command_line import Overrides, current_names, flatten
from jobs.common.config import Config, OnResume, to_dict

_AS_EVER = (None, False, (), "auto", "refuse", "keep", "report", "ignore", "same-workers")
"""What a choice that earlier versions did not give is by default: what was done then. 0 is as False."""
_OF_LATER_TASKS = ("data.form", "data.too_long", "train.loss_on", "eval.answers", "prefer.")
"""Options of tasks that earlier versions did not have, whose runs they say nothing about."""
_PLACES = ("data.uri", "data.val_uri", "data.test_uri")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A field that a run had another value of, and what it may be when the run goes on; None: what it was."""

    name: str
    old: object
    new: object
    on_resume: OnResume | None

    def __str__(self) -> str:
        return f"{self.name}: {self.old} -> {self.new}"


def changes(old: Overrides, new: Config | Overrides) -> list[Change]:
    """What is not the same, but for what is free to be anything."""
    rules = _rules(new if isinstance(new, Config) else Config())
    after = flatten(to_dict(new) if isinstance(new, Config) else new)
    before = current_names(flatten(old), after)
    if before.get("model.init_digest") != after.get("model.init_digest"):
        rules.pop("model.init_from", None)
    keys = [key for key in sorted({*before, *after}) if rules.get(key) != "free"
            and (key in after or not key.startswith("run."))]  # fields of earlier versions, of where and how it ran
    before |= {k: after[k] for k in keys
               if k not in before and (after[k] in _AS_EVER or k.startswith(_OF_LATER_TASKS))}
    return [Change(name=k, old=before.get(k), new=after.get(k), on_resume=rules.get(k)) for k in keys
            if _plain_value(k, before.get(k)) != _plain_value(k, after.get(k))]


def differences(old: Overrides, new: Config | Overrides) -> list[str]:
    """The same, one line a field: `optim.lr: 0.1 -> 0.2`."""
    return [str(change) for change in changes(old, new)]


def decisive(found: Sequence[Change], config: Config, *, longer: bool, short_of_memory: bool = False) -> list[Change]:
    """Those with which a run does not go on. longer: whether it would make more steps. short_of_memory: whether it can
    go on in smaller passes alone."""
    fine: set[OnResume | None] = {"rounds"}
    fine |= {"cuts"} if short_of_memory or not config.differs_by_pass else set()
    fine |= {"extends"} if longer else set()
    return [change for change in found if change.on_resume not in fine]


def refusal(config: Config, refused: Sequence[Change]) -> str:
    """What is said of a run that was made with another config: what differs, and what to do."""
    rules = {change.on_resume for change in refused}
    more = (f"; other passes are another training for {config.differs_by_pass}" if "cuts" in rules else "") + (
        "; more steps, by --train.epochs or --train.max-steps, would extend it" if "extends" in rules else "")
    listed = "\n  ".join(map(str, refused))
    return (f"run {config.run.name!r} was made with another config:\n  {listed}\npass the old values to continue it, "
            f"another --run.name, or --run.resume never for a new attempt beside it{more}")


def consequences(found: Sequence[Change], config: Config, num_shards: int) -> list[str]:
    """What is to be said of changes with which a run goes on. num_shards: those that its rows were dealt to."""
    cuts = [change for change in found if change.on_resume == "cuts" and config.differs_by_pass]
    rounds = [change for change in found if change.on_resume in ("rounds", "cuts") and change not in cuts]
    longer = [change for change in found if change.on_resume == "extends"]
    said = {f"another training from here on, as if by another seed, for {config.differs_by_pass} in other passes": cuts,
            "equal within rounding from here on, not bit for bit": rounds, "extended": longer}
    run = config.run
    fewer = [f"--run.workers {run.workers}: at most {num_shards}, to whom the rows were dealt"]
    return [*(f"{text}: {'; '.join(map(str, listed))}" for text, listed in said.items() if listed),
            *(fewer if run.max_workers > num_shards else [])]


def decisive_fingerprint(config: Config) -> str:
    """Of all that decides the result."""
    rules = _rules(config)
    decisive = {key: value for key, value in sorted(flatten(to_dict(config)).items()) if rules.get(key) != "free"}
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _rules(config: Config) -> dict[str, OnResume]:
    """By field of all groups, what it may be when a run goes on."""
    groups = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    return {f"{name}.{field}": rule for name, group in groups.items()
            for field, rule in cast("dict[str, OnResume]", getattr(group, "on_resume", {})).items()}


def _plain_value(field_name: str, value: object) -> object:
    """A place may be spelt in several ways."""
    if field_name in _PLACES and isinstance(value, str) and "/" in value:
        return Store.open(value).location()
    return list(cast(Sequence[object], value)) if isinstance(value, tuple | list) else value
