"""What was found in a source: files read, rows by split and class, what was left out and why, the same content again.

It is said in a few lines when the data has been prepared, and kept in the set's details.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from cluster.core.documents import JsonObject
from jobs.common.data.dataset import Dataset, Split, SplitName
from jobs.common.data.found.repeats import Repeats
from jobs.common.data.found.split_names import Unread
from jobs.common.data.splits import alike

SHOWN = 5
NEAR = "rows with nearly the content of others (--data.near-duplicates)"
DROPPED = "rows with the content of others (--data.duplicates, --data.leaks)"
_MOST_CLASSES = 12


@dataclass(frozen=True)
class LeftOut:
    """Files or rows that are not used, for one reason."""

    count: int
    first: tuple[str, ...] = ()
    """What to call the first five."""

    def merged(self, other: "LeftOut") -> "LeftOut":
        """Those of both, for the same reason."""
        return LeftOut(self.count + other.count, (*self.first, *other.first)[:SHOWN])


@dataclass(frozen=True)
class Account:
    """Of one source."""

    files: int
    left_out: Mapping[str, LeftOut] = field(default_factory=dict[str, LeftOut])
    """By reason, such as `files of another format`."""
    repeats: Repeats | None = None
    """None where nobody looked."""
    near: Repeats | None = None
    """The same of what is nearly the same."""

    @staticmethod
    def of(files: int, unread: Iterable[Unread], rows: Mapping[str, LeftOut], repeats: Repeats | None,
           near: Repeats | None = None) -> "Account":
        """unread: of each source, the names of files that are not read, by reason. rows: those that are left out."""
        names: Unread = {}
        for source in unread:
            for reason, more in source.items():
                names.setdefault(reason, []).extend(more)
        left_out = {reason: LeftOut(len(each), tuple(each[:SHOWN])) for reason, each in names.items()}
        return Account(files, left_out | {reason: of for reason, of in rows.items() if of.count}, repeats, near)

    @property
    def details(self) -> JsonObject:
        """Plain JSON values for a set's details: `_found` for programs, and in words what a reader must know."""
        known: JsonObject = {"_found": asdict(self)}
        if self.left_out:
            known["left_out"] = ", ".join(f"{left.count:,} {reason}" for reason, left in self.left_out.items())
        if said := self._same():
            known["repeats"] = "; ".join(said)
        return known

    def _same(self) -> list[str]:
        return [line for found in (self.repeats, self.near) if found for line in found.lines()]

    def lines(self, splits: Mapping[SplitName, Split], class_names: Sequence[str]) -> list[str]:
        """What to say of it."""
        files = f" from {self.files:,} file{'s' * (self.files != 1)}" if self.files else ""
        said = [f"rows: {', '.join(f'{name} {split.num_rows:,}' for name, split in splits.items())}{files}"]
        if class_names:
            said.append(_classes(splits, class_names))
            said += [f"WARNING: the classes {', '.join(map(repr, names))} differ by case, spaces or hyphens only: are "
                     "they one?" for names in alike(class_names)]
        for reason, left in self.left_out.items():
            names = f" ({', '.join(left.first)}{' …' * (left.count > len(left.first))})" if left.first else ""
            said.append(f"left out: {left.count:,} {reason}{names}")
        return [*said, *self._same()]


def lines_of(dataset: Dataset) -> list[str]:
    """What to say of a prepared set; of one that was made before anybody counted, its rows."""
    return account_of(dataset).lines(dataset.splits, dataset.class_names)


def account_of(dataset: Dataset) -> Account:
    """What was found when a set was prepared; of one that was made before anybody counted, nothing."""
    found: JsonObject = dataset.details.get("_found") or {"files": 0}
    left_out = {reason: LeftOut(each["count"], tuple(each["first"]))
                for reason, each in found.get("left_out", {}).items()}
    repeats, near = (Repeats(**found[name]) if found.get(name) else None for name in ("repeats", "near"))
    return Account(found["files"], left_out, repeats, near)


def _classes(splits: Mapping[SplitName, Split], names: Sequence[str]) -> str:
    """The classes with their rows over all splits, the most first."""
    counts = [sum(of) for of in zip(*(split.class_counts for split in splits.values()), strict=True)]
    order = sorted(range(len(names)), key=lambda code: -counts[code])
    shown = ", ".join(f"{names[code]} ({counts[code]:,})" for code in order[:_MOST_CLASSES])
    fewest = f" … {names[order[-1]]} ({counts[order[-1]]:,})" if len(names) > _MOST_CLASSES else ""
    return f"{len(names)} classes: {shown}{fewest}"
