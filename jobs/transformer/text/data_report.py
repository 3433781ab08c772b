"""What data.html shows of text: lengths in tokens, examples, texts unlike the others, and texts nearly the same.

All of it is of at most a few thousand rows. To classify, texts are the test rows that `prepare` keeps; what else is
shown, and all rows to generate, is what the tokenizer makes of the tokens again.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.core.documents import parse_json
from jobs.common.arrays import Array
from jobs.common.data.dataset import Dataset
from jobs.common.data.found.near_duplicates import SHINGLE, alike
from jobs.common.data.found.row_sample import RowSample
from jobs.common.report import html
from jobs.common.report.data_report import class_of, cut, histogram, table
from jobs.common.report.html import Section
from jobs.transformer.chat.packing import BEGINS, LEARNT
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.dataset_files import sample as kept_texts
from jobs.transformer.text.dataset_files import tokenizer_files
from jobs.transformer.text.features import MOST_CHARACTERS, TextFeatures
from jobs.transformer.text.tokenizer import backend_of

CLASSES, EXAMPLES, ENDS, ODD_ROWS = 20, 2, 3, 10
UNKNOWN, NON_ASCII, SHORT_TOKENS = 0.2, 0.5, 1
"""What is odd: so large a share of unknown tokens, or of characters beyond ASCII where few texts have them; so few
tokens."""
_COMPARED_TOKENS = 400_000
_MARKED_TOKENS = 400
_DECODED_ROWS, _DECODED_TOKENS = 200, 200_000
"""Of each split, to generate."""
_CHARACTERS = 2_000_000
"""Of the texts that are looked at, to classify."""


@dataclass(frozen=True)
class Texts:
    """Some texts; each field has one value a text."""

    texts: Sequence[str]
    names: Sequence[str]
    """What to call each: `row 17, test`."""
    classes: Sequence[str]


class Decoder:
    """From tokens to text again, without the model's library."""

    def __init__(self, dataset: Dataset) -> None:
        self.tokenizer = tokenizer_files(dataset)["tokenizer.json"].decode()
        self._backend = backend_of(self.tokenizer, None)

    def __call__(self, rows: Sequence[Array] | Array, *, special: bool = False) -> list[str]:
        """rows: (n, L) tokens, -1 where there is none. special: whether special tokens are shown."""
        return self._backend.decode_batch([row[row >= 0].tolist() for row in rows], skip_special_tokens=not special)


def text_data_sections(config: TransformerConfig, dataset: Dataset) -> list[Section]:
    sample, decode = RowSample.of(dataset, config.data), Decoder(dataset)
    if config.task == "classify":
        texts, shown = _kept(dataset), "the texts that are kept of the test rows"
        return [_lengths(dataset, sample), _examples_by_class(dataset, texts), _ends(texts, shown),
                _odd(texts, odd_texts(texts, decode.tokenizer), shown), _near_duplicates(dataset, sample, decode)]
    if config.task == "prefer":
        return [_pairs(dataset, sample, decode)]
    texts = _decoded(dataset, sample, decode)
    if config.task == "chat":
        return [_packing(dataset, sample), _learnt(dataset, sample, decode),
                _odd(texts, odd_texts(texts, decode.tokenizer), f"{len(texts.texts):,} rows, as they are packed"),
                _near_duplicates(dataset, sample, decode)]
    return [_packing(dataset, sample), _first_rows(texts),
            _odd(texts, odd_texts(texts, decode.tokenizer), f"{len(texts.texts):,} rows, as they are packed"),
            _near_duplicates(dataset, sample, decode)]


def _kept(dataset: Dataset) -> Texts:
    """As many as are looked at quickly; the first of them stand for all."""
    kept = kept_texts(dataset)
    sizes = np.cumsum([min(len(text), MOST_CHARACTERS) for text in kept.texts])
    few = slice(0, max(1, int(np.searchsorted(sizes, _CHARACTERS))))
    return Texts(kept.texts[few], [f"row {row}, test" for row in kept.row_ids[few].tolist()],
                 [dataset.class_names[label] for label in kept.labels[few].tolist()])


def _decoded(dataset: Dataset, sample: RowSample, decode: Decoder) -> Texts:
    """Of each split as many rows, spread over those of the sample."""
    most = max(EXAMPLES, min(_DECODED_ROWS, _DECODED_TOKENS // sample.columns["tokens"].shape[1]))
    rows = np.concatenate([_some(sample.of_split(name), most) for name in dataset.splits])
    return Texts(decode(sample.columns["tokens"][rows]), [sample.name(row) for row in rows.tolist()], [""] * len(rows))


def _some(rows: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64))]


# ── lengths ──
def _lengths(dataset: Dataset, sample: RowSample) -> Section:
    """To classify."""
    lengths = {name: sample.columns["length"][sample.of_split(name)] for name in dataset.splits}
    drawn = histogram("Lengths of texts in tokens", {name: of.tolist() for name, of in lengths.items()}, "tokens")
    most, truncated = dataset.details["max_length"], dataset.details.get("truncated", {})
    rows = [(name, split.num_rows, _share(truncated.get(name, 0), split.num_rows),
             *(f"{value:.0f}" for value in _quantiles(lengths[name]))) for name, split in dataset.splits.items()]
    found = html.section("", f"Of all rows the share that is longer than {most} tokens and was cut (--data.max-length "
                         f"takes more); the rest of {sample.counted(dataset)}, special tokens counted.",
                         ["split", "rows", "cut", "least", "median", "95th percentile", "most"], rows)
    return Section("Lengths", found.html + html.figures("", "", [("Tokens of a text", drawn)]).html)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else "–"


def _quantiles(values: Array) -> list[float]:
    return np.quantile(values, [0, 0.5, 0.95, 1]).tolist() if len(values) else [np.nan] * 4


def _packing(dataset: Dataset, sample: RowSample) -> Section:
    """To generate, rows hold documents one after the other, and to chat, conversations."""
    details, columns = dataset.details, sample.columns
    begins = columns["marks"] & BEGINS > 0 if "marks" in columns else columns["tokens"] == details["start_id"]
    stretches = {name: stretches_of(columns["tokens"][rows], begins[rows]) for name in dataset.splits
                 for rows in [sample.of_split(name)]}
    what = "conversation" if "marks" in columns else "document"
    drawn = histogram(f"Stretches of one {what} in a row", {name: of.tolist() for name, of in stretches.items()},
                      "tokens")
    more = ({"conversations": details["conversations"], "learnt": details["learnt"]} if "marks" in columns else {
        "bytes": details["bytes"], "bytes a token": {name: f"{size / max(1, details['tokens'][name]):.2f}"
                                                     for name, size in details["bytes"].items()}})
    rows = [(name, split.num_rows, details["tokens"][name], *(each[name] for each in more.values()),
             *(f"{value:.0f}" for value in _quantiles(stretches[name]))) for name, split in dataset.splits.items()]
    intro = ("Rows of one length hold whole conversations." if "marks" in columns else
             "Documents follow each other in rows of one length, so a long one is cut, and goes on in the next row.")
    found = html.section("", f"{intro} Stretches of one {what} in a row, in tokens, of {sample.counted(dataset)}.",
                         ["split", "rows", "tokens", *more, "shortest stretch", "median", "95th percentile", "longest"],
                         rows)
    return Section("Lengths", found.html + html.figures("", "", [(f"Tokens of a {what} in a row", drawn)]).html)


def stretches_of(tokens: Array, begins: Array) -> npt.NDArray[np.int64]:
    """Lengths of what rows (n, L) hold of one document; begins: whether a token begins one. -1 is no token."""
    found: list[int] = []
    for row, first in zip(tokens, begins, strict=True):
        there = row >= 0
        ends = np.unique(np.concatenate([[0], np.flatnonzero(first[there]), [there.sum()]]))
        found += np.diff(ends).tolist()
    return np.array(found, np.int64)


# ── examples ──
def _examples_by_class(dataset: Dataset, texts: Texts) -> Section:
    by_class: dict[str, list[int]] = {name: [] for name in dataset.class_names}
    for row, name in enumerate(texts.classes):
        by_class[name].append(row)
    chosen = [name for name in dataset.class_names if by_class[name]]
    chosen = [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, min(CLASSES, len(chosen))).astype(int))]
    more = f" {len(chosen)} of {len(dataset.class_names):,} classes." if len(chosen) < len(dataset.class_names) else ""
    return table("Examples", f"Test rows of each class.{more}", ["text", "class", "row"],
                 [(cut(texts.texts[row]), cut(name, 40), texts.names[row])
                  for name in chosen for row in by_class[name][:EXAMPLES]])


def _learnt(dataset: Dataset, sample: RowSample, decode: Decoder) -> Section:
    """Of conversations: which of their tokens are targets."""
    rows: list[tuple[str, list[list[tuple[str, bool]]]]] = []
    for split in dataset.splits:
        for row in sample.of_split(split)[:EXAMPLES].tolist():
            tokens, marks = (sample.columns[name][row][:_MARKED_TOKENS] for name in ("tokens", "marks"))
            there = np.flatnonzero(tokens >= 0)
            rows.append((sample.name(row), [
                _parts(tokens[part], marks[part] & LEARNT > 0, decode)
                for part in np.split(there, np.flatnonzero(marks[there] & BEGINS > 0)[1:])]))
    intro = (f"The first {_MARKED_TOKENS:,} tokens of the first rows of each split, as the model reads them: whole "
             "conversations, none of which sees another. Marked is what the model learns to write: each marked token "
             "is a target of the loss, and nothing else is.")
    return Section("What is learnt", html.render("learnt.html", "jobs.transformer", intro=intro, rows=rows))


def _pairs(dataset: Dataset, sample: RowSample, decode: Decoder) -> Section:
    """Of pairs: which of their tokens are the answers."""
    rows = [(sample.name(row), [_parts(tokens[tokens >= 0], marks[tokens >= 0] & LEARNT > 0, decode)
                                for tokens, marks in zip(*(sample.columns[name][row] for name in ("tokens", "marks")),
                                                         strict=True)])
            for split in dataset.splits for row in sample.of_split(split)[:EXAMPLES].tolist()]
    intro = ("The first rows of each split, as the model reads them: first the chosen side, then the rejected one. "
             "Marked is the answer, of whose tokens the log-probabilities are compared.")
    return Section("Pairs", html.render("learnt.html", "jobs.transformer", intro=intro, rows=rows))


def _parts(tokens: Array, learnt: Array, decode: Decoder) -> list[tuple[str, bool]]:
    """The text of a conversation in parts that are learnt, or are not."""
    parts = np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(learnt)) + 1)
    texts = decode([tokens[part] for part in parts], special=True)
    return [(text, bool(learnt[part[0]])) for text, part in zip(texts, parts, strict=True)]


def _first_rows(texts: Texts) -> Section:
    splits = [name.rpartition(", ")[2] for name in texts.names]
    firsts = [row for split in dict.fromkeys(splits)
              for row in [place for place, of in enumerate(splits) if of == split][:EXAMPLES]]
    return table("Examples", "The first rows of each split, as the model reads them.", ["text", "row"],
                 [(cut(texts.texts[row], 300), texts.names[row]) for row in firsts])


def _ends(texts: Texts, shown: str) -> Section:
    order = sorted(range(len(texts.texts)), key=lambda row: len(texts.texts[row]))
    rows = list(dict.fromkeys([*reversed(order[-ENDS:]), *order[:ENDS]]))
    return table("Longest and shortest", f"Of {shown}.", ["text", "characters", "class", "row"],
                 [(cut(texts.texts[row]), f"{len(texts.texts[row]):,}", cut(texts.classes[row], 40), texts.names[row])
                  for row in rows])


# ── unlike the others ──
def odd_texts(texts: Texts, tokenizer: str) -> list[tuple[int, str]]:
    """Texts and what is odd about them, the oddest first. tokenizer: a tokenizer.json."""
    if not texts.texts:
        return []
    features = TextFeatures(tokenizer)(texts.texts)
    has_unknown = parse_json(tokenizer)["model"].get("unk_token") is not None
    plain = float(np.median(features["non_ascii_share"])) < NON_ASCII / 2
    found: list[tuple[float, int, str]] = []
    for row in range(len(texts.texts)):
        unknown, strange = float(features["unknown_share"][row]), float(features["non_ascii_share"][row])
        if has_unknown and unknown >= UNKNOWN:
            found.append((unknown, row, f"{unknown:.0%} of its tokens are unknown"))
        elif int(features["tokens"][row]) <= SHORT_TOKENS:
            found.append((2.0, row, "a token or none"))
        elif plain and strange >= NON_ASCII:
            found.append((strange, row, f"{strange:.0%} of its characters are not ASCII, as few texts have"))
    return [(row, why) for _, row, why in sorted(found, key=lambda each: (-each[0], each[1]))[:ODD_ROWS]]


def _odd(texts: Texts, odd: Sequence[tuple[int, str]], shown: str) -> Section:
    intro = (f"Of {shown}: those of which {UNKNOWN:.0%} or more is unknown to the tokenizer, those of a token or none, "
             "and those mostly of characters that few others have.")
    return table("Odd rows", intro, *_filled(["text", "why", "class", "row"], [
        (cut(texts.texts[row]), why, cut(texts.classes[row], 40), texts.names[row]) for row, why in odd]))


# ── nearly the same ──
def _near_duplicates(dataset: Dataset, sample: RowSample, decode: Decoder) -> Section:
    tokens = sample.columns["tokens"]
    rows = _some(np.arange(len(sample)), max(SHINGLE, _COMPARED_TOKENS // tokens.shape[1]))
    pairs, same = alike(tokens[rows])
    intro = (f"Pairs of {len(rows):,} rows that have most of their triples of successive tokens in common, but not all "
             "tokens. A pair in two splits makes scores too good; under two labels, one of them may be wrong.")
    if same:
        intro += f" Besides, {same:,} of these rows have exactly the tokens of an earlier one."

    def lines() -> Iterator[tuple[str, ...]]:
        for number, pair in enumerate(pairs, 1):
            both = rows[list(pair[:2])].tolist()
            for row, text in zip(both, decode(tokens[both]), strict=True):
                yield (cut(text), f"{number}: {pair.value:.0%} in common", cut(class_of(dataset, sample, row), 40),
                       sample.name(row))

    return table("Near-duplicates", intro, *_filled(["text", "pair", "class", "row"], list(lines())))


def _filled(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Without the columns that no row has anything in."""
    kept = [place for place in range(len(headings)) if any(row[place] for row in rows)]
    return [headings[place] for place in kept], [tuple(row[place] for place in kept) for row in rows]
