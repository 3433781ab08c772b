"""Rows that cannot be read: named, all of them up to twenty, or left out and listed (`--data.bad-rows`)."""

import csv
import io
from collections.abc import Sequence

from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.config import DataConfig
from jobs.common.data.found.account import SHOWN, LeftOut

BadRow = tuple[str, str]
"""What to call a row, and why it cannot be read, as the end of a sentence."""
SKIPPED_FILE = "skipped.csv"
_MOST_NAMED = 20


def refuse(bad: Sequence[BadRow], remedy: str = "") -> None:
    """Raises: DataError where there are some. remedy: for all of them, where their reasons do not say it."""
    says = f": {remedy}" if remedy else ""
    if len(bad) == 1:
        raise DataError(f"{bad[0][0]} {bad[0][1]}{says}")
    if bad:
        more = f"\n  and {len(bad) - _MOST_NAMED:,} more" if len(bad) > _MOST_NAMED else ""
        raise DataError(f"{len(bad):,} rows cannot be read{says or ': mend them'}; or leave them out with "
                        f"--data.bad-rows skip{_listed(bad)}{more}")


def check_few(bad: Sequence[BadRow], rows: int, config: DataConfig) -> None:
    """rows: of all, with those. Raises: DataError where more are left out than the config allows."""
    if len(bad) > config.bad_rows_most * rows:
        raise DataError(f"{len(bad):,} of {rows:,} rows of {config.uri} cannot be read, more than --data.bad-rows-most "
                        f"{config.bad_rows_most:g} allows: mend them, or allow more{_listed(bad)}")


def list_skipped(bad: Sequence[BadRow], store: Store, blocks: str) -> dict[str, LeftOut]:
    """Writes them all beside the blocks. Returns what to say of them."""
    if not bad:
        return {}
    listed = io.StringIO()
    csv.writer(listed).writerows([("row", "why"), *bad])
    store.write_text(f"{blocks}/{SKIPPED_FILE}", listed.getvalue())
    return {f"rows that cannot be read, listed in {blocks}/{SKIPPED_FILE}": LeftOut(
        len(bad), tuple(where for where, _ in bad[:SHOWN]))}


def _listed(bad: Sequence[BadRow]) -> str:
    return "".join(f"\n  {where} {why}" for where, why in bad[:_MOST_NAMED])
