"""Where the time of chosen steps went, for the report: the operations that took most, and where the traces are."""

from collections.abc import Sequence

from jobs.common.report.html import Section, render
from jobs.common.step_profile import Operation, ProfileTable, steps_shown

MOST_TABLES, _MOST_CHARACTERS = 8, 60


def profile_section(tables: Sequence[ProfileTable], missing: Sequence[str]) -> list[Section]:
    """Nothing where no step was to be profiled. missing: the steps without a trace, in words."""
    if not tables and not missing:
        return []
    shown = [(f"{steps_shown(each.first, each.last).capitalize()} of rank {each.rank}", each.trace,
              ["operation", *(["GPU ms"] if each.device_ms else []), "CPU ms", "share", "calls"],
              [_row(of, each) for of in each.operations]) for each in tables[:MOST_TABLES]]
    return [Section("Profile", render("profile.html", tables=shown, missing=missing, all=tables,
                                      titles=" and ".join(dict.fromkeys(each.title for each in tables))))]


def _row(operation: Operation, table: ProfileTable) -> tuple[object, ...]:
    """Its share is that of the GPU's time, where there is one."""
    on_device = [f"{operation.device_ms:,.2f}"] if table.device_ms else []
    share = operation.device_ms / table.device_ms if on_device else operation.self_ms / (table.self_ms or 1)
    name = operation.name  # that of a kernel may be a whole declaration of C++
    return (name if len(name) <= _MOST_CHARACTERS else f"{name[: _MOST_CHARACTERS - 1]}…", *on_device,
            f"{operation.self_ms:,.2f}", f"{share:.1%}", f"{operation.calls:,}")
