"""data.html: one file that shows a person what data a run trains on. Like the report it needs no network and no script.

    write_data_report(store, "first", dataset, job.data_sections(config, dataset))
"""

from collections.abc import Sequence

from markupsafe import Markup

from cluster.core.storage import Store
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.account import Account, account_of
from jobs.common.data.found.near_duplicates import Pair
from jobs.common.data.found.repeats import Repeats
from jobs.common.data.found.row_sample import RowSample
from jobs.common.formatting import shown
from jobs.common.report import charts, html
from jobs.common.report.html import Section

DATA_FILE = "data.html"
MOST_CLASSES = 30
"""Of more classes the most and the fewest rows are shown."""


def write_data_report(store: Store, run: str, dataset: Dataset, sections: Sequence[Section], uri: str) -> None:
    """Writes the file. sections: of the kind of data. uri: where it comes from. Raises: StorageError,
    StorageFullError."""
    store.write_text(DATA_FILE, render(run, dataset, sections, uri))


def render(run: str, dataset: Dataset, sections: Sequence[Section], uri: str) -> str:
    """The page as one HTML document."""
    return html.render("data_report.html", run=run, sections=[_found(dataset, uri), _classes(dataset), *sections])


# ── what was found ──
def _found(dataset: Dataset, uri: str) -> Section:
    account = account_of(dataset)
    tiles = [(name, f"{split.num_rows:,}", "rows") for name, split in dataset.splits.items()]
    tiles += [("files read", f"{account.files:,}", "")] if account.files else []
    tiles += [("classes", f"{len(dataset.class_names):,}", "")] if dataset.class_names else []
    facts = {name: value for name, value in dataset.describe().items()
             if name not in ("rows", "classes", "class_counts", "left_out", "repeats")}
    return Section("What was found", html.render(
        "data_found.html", tiles=tiles, left_out=_left_out(account),
        repeats=[*_repeats(account.repeats), *_repeats(account.near)], were_counted=account.repeats is not None,
        facts={**facts, "read from": uri, "prepared in": dataset.store.location()}))


def _left_out(account: Account) -> list[tuple[str, int, str]]:
    """Reason, how many, and the first."""
    return [(reason, left.count, ", ".join(left.first) + " …" * (left.count > len(left.first) > 0))
            for reason, left in account.left_out.items()]


def _repeats(repeats: Repeats | None) -> list[tuple[str, str, str]]:
    """What rows have in common with others, how many do, and which are examples."""
    if repeats is None:
        return []
    counts = {"duplicates": repeats.duplicates, "leaks": repeats.leaks,
              "contradictions": {"": repeats.contradictions}}
    about = {"duplicates": f"{repeats.like} of an earlier row of their split",
             "leaks": f"LEAK: {repeats.like} of a row of another split, so scores on them are too good",
             "contradictions": f"{repeats.like} of a row that has another label"}
    return [(about[kind], ", ".join(f"{count:,} {name}" for name, count in found.items() if count),
             ", ".join(f"{first} and {second}" for first, second in repeats.examples.get(kind, ())))
            for kind, found in counts.items() if any(found.values())]


# ── classes ──
def _classes(dataset: Dataset) -> Section:
    names = dataset.class_names
    counts = [split.class_counts for split in dataset.splits.values()]
    if not names or not all(counts):
        return Section("Classes", Markup())
    totals = [sum(of) for of in zip(*counts, strict=True)]
    order = sorted(range(len(names)), key=lambda code: -totals[code])
    half = MOST_CLASSES // 2
    chosen = order if len(order) <= MOST_CLASSES else [*order[:half], *order[-half:]]
    rows = [(names[code], totals[code] / max(1, max(totals)), *(of[code] for of in counts), totals[code])
            for code in chosen]
    intro = (f"The class with the most rows, {names[order[0]]}, has {totals[order[0]]:,}; the one with the fewest, "
             f"{names[order[-1]]}, has {totals[order[-1]]:,}.")
    if len(chosen) < len(order):
        intro += f" Of {len(order):,} classes the {half} with the most rows, and the {half} with the fewest."
    return Section("Classes", html.render("data_classes.html", intro=intro, splits=list(dataset.splits), rows=rows))


# ── what the kinds of data share ──
def pictures(title: str, intro: str, rows: Sequence[tuple[Sequence[str], str]], size: int = 112) -> Section:
    """Pictures side by side with a caption below them, as data URIs. size: of each, in pixels of the screen."""
    if not rows:
        return html.section(title, f"{intro} There are none.")
    return Section(title, html.render("data_pictures.html", intro=intro, rows=rows, size=size))


def table(title: str, intro: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Section:
    """A sentence and a table, or that there is nothing to show. The first column may be long; others do not break."""
    return html.section(title, intro, headings, rows) if rows else html.section(title, f"{intro} There are none.")


def class_of(dataset: Dataset, sample: RowSample, row: int) -> str:
    """The name of a row's class; nothing where there are no classes."""
    return dataset.class_names[int(sample.columns["label"][row])] if dataset.class_names else ""


def pair_name(sample: RowSample, pair: Pair) -> str:
    """What to call two rows."""
    return f"{sample.name(pair.first)}, and {sample.name(pair.second)}"


def histogram(name: str, values: dict[str, Sequence[float]], x_label: str) -> Markup:
    """How often which values occur, as shares of each name's rows; of all names in the same bins."""
    import numpy as np

    arrays = {each: np.asarray(of, float) for each, of in values.items() if len(of)}
    with charts.chart(name) as (axes, done):
        if arrays:
            joined = np.concatenate(list(arrays.values()))
            bins = np.histogram_bin_edges(joined, bins=min(20, max(1, len(np.unique(joined)))))
            for place, (each, of) in enumerate(arrays.items()):
                shares = np.histogram(of, bins)[0] / len(of)
                axes.stairs(shares, bins, label=charts.plain(each), color=charts.colour(place), linewidth=1.6)
            axes.legend(loc="best")
        axes.set(xlabel=x_label, ylabel="share of the rows")
    return done[0]


def cut(text: str, most: int = 240) -> str:
    """A text on one line, cut where it is long, with what is no letter to be seen as a dot."""
    line = " ".join(text[: 4 * most].split())
    kept = "".join(letter if letter.isprintable() else "·" for letter in line)
    return shown(kept if len(kept) <= most else kept[: most - 1] + "…")
