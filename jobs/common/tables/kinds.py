"""Of what kind a column is: of numbers or dates if all its values are, else of categories."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Mapping

import pyarrow.types as types

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from jobs.common.data.arrow import ArrowArray
from jobs.common.tables.columns import Kind, UnreadableValueError, as_days, as_numbers, is_missing, is_text

Describe = Callable[[int], str]
_READERS: Mapping[Kind, Callable[..., object]] = {"number": as_numbers, "date": as_days}


class Sighting:
    """What has been seen of a column, a batch after another. A kind that one value contradicts is given up for good."""

    def __init__(self, name: str, *, as_category: bool) -> None:
        self._name, self._as_category = name, as_category
        self._possible: list[Kind] = [] if as_category else ["number", "date"]
        self._fitted: set[Kind] = set()
        self._against: dict[Kind, tuple[str, bool]] = {}
        """Of a kind that was given up: the value, and whether another one before it was of that kind."""
        self.because = ""
        """Which value keeps it from being of numbers, or of dates, where others are."""

    @property
    def kind(self) -> Kind:
        """Of a column without any value, a number: it is refused where it is measured."""
        return self._possible[0] if self._possible else "category"

    def see(self, column: ArrowArray, describe: Describe) -> None:
        """Raises: DataError for a type that is none of the kinds, and for an infinite number."""
        if types.is_null(column.type):
            return
        typed = self._of_type(column, describe)
        if typed is not None:
            self._possible = [kind for kind in self._possible if kind == typed]
            if typed == "number" and not self._as_category:
                self._check_finite(column, describe)
            return
        for kind in tuple(self._possible):
            try:
                _READERS[kind](column, self._name)
                if not is_missing(column).all():
                    self._fitted.add(kind)
            except UnreadableValueError as error:
                if "finite" in str(error):
                    raise DataError(f"{describe(error.row)}: {error}: mend it, or leave it empty") from None
                self._give_up(kind, f" ({describe(error.row)}: {error})", after_others=error.row > 0)

    def _give_up(self, kind: Kind, value: str, *, after_others: bool) -> None:
        self._possible.remove(kind)
        after_others = after_others or kind in self._fitted
        self._against[kind] = value, after_others
        if after_others:
            self.because = value

    def to_json(self) -> JsonObject:
        """Plain values, for `add`."""
        return {"possible": self._possible, "fitted": sorted(self._fitted), "against": self._against}

    def add(self, later: JsonObject) -> None:
        """What another one has seen of the rows that follow."""
        for kind in tuple(self._possible):
            if kind not in later["possible"]:
                if kind in later["against"]:
                    value, after_others = later["against"][kind]
                    self._give_up(kind, value, after_others=after_others)
                else:
                    self._possible.remove(kind)
        self._fitted |= set(later["fitted"])

    def _of_type(self, column: ArrowArray, describe: Describe) -> Kind | None:
        """What the type alone says; None for texts."""
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        if types.is_boolean(kind) or types.is_dictionary(column.type):
            return "category"
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
            return "number"
        if types.is_timestamp(kind) or types.is_date(kind):
            return "date"
        if is_text(kind):
            return None
        raise DataError(f"column {self._name!r} of {describe(0)} is of type {kind}: a column must hold numbers, texts "
                        f"or dates; leave it out with --data.ignore {self._name}")

    def _check_finite(self, column: ArrowArray, describe: Describe) -> None:
        try:
            as_numbers(column, self._name)
        except UnreadableValueError as error:
            raise DataError(f"{describe(error.row)}: {error}: mend it, or leave it empty") from None
