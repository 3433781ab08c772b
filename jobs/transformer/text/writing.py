"""Pass 2 over text: a piece becomes blocks of tokens, in a task of its own.

To classify, a row is a text. To generate, rows are cut from one stream of all documents of a piece, each begun by its
start token, so that every token is a target once and no position is wasted but in the last row of a split. To chat,
rows hold whole conversations (conversation_rows.py).
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from jobs.common.data.dataset import SPLITS
from jobs.common.data.found.near_texts import write_near
from jobs.common.data.found.repeats import content_hashes, write_hashes
from jobs.common.data.pieces import Writing
from jobs.common.data.prepared import Writers
from jobs.common.data.splits import keyed_hash
from jobs.transformer.text.conversation_rows import ConversationRows
from jobs.transformer.text.survey import Ids, PieceRows, Rows, Rule, read_piece
from jobs.transformer.text.tokenizer import backend_of, framed

SAMPLE_ROWS = 2000
_TEXTS_AT_ONCE = 20_000
_CHARACTERS_AT_ONCE = 2_000_000
_ROWS_AT_ONCE = 256
_PIECE_IDS = 1 << 32
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Task:
    """All that a piece is made with."""

    rule: Rule
    seed: int
    tokenizer: str
    """A tokenizer.json."""
    max_length: int
    start_id: int | None
    end_id: int | None
    writing: Writing
    near_share: float | None = None
    """In common of rows that are nearly the same; None: nobody looks for them."""
    conversations: ConversationRows | None = None
    """To chat."""

    def __call__(self, piece: PieceRows) -> JsonObject:
        """Writes a piece. Answers its counts: `tokens`, `truncated` and `bytes` by split; `sample` to classify."""
        return self.writing.piece(piece.number, lambda writers: self._fill(piece, writers))

    def _fill(self, piece: PieceRows, writers: Writers) -> JsonObject:
        rows = read_piece(self.rule, piece)
        contents = [text.encode() for text in rows.texts]
        write_hashes(self.writing.store, self.writing.blocks, piece.number, content_hashes(contents), rows.splits,
                     rows.codes, rows.ids)
        if self.near_share is not None:
            write_near(self.writing.store, self.writing.blocks, piece.number, rows.texts, rows.splits, rows.codes,
                       rows.ids, self.near_share)
        about: JsonObject = {
            "tokens": dict.fromkeys(SPLITS, 0), "truncated": dict.fromkeys(SPLITS, 0),
            "bytes": {split: sum(len(contents[i]) for i in rows.of(split)) for split in SPLITS}}
        if self.conversations is not None:
            shown = self.conversations.write(rows, piece.number * _PIECE_IDS, about, writers)
            about["sample"] = _sample(rows, self.seed, shown)
        elif rows.codes is not None:
            self._write_rows(rows, about, writers)
            about["sample"] = _sample(rows, self.seed)
        else:
            self._write_stream(rows, piece.number, about, writers)
        return about

    def _write_rows(self, rows: Rows, about: JsonObject, writers: Writers) -> None:
        backend = backend_of(self.tokenizer, self.max_length)
        assert rows.codes is not None
        for split in SPLITS:
            for chosen in _batches(rows, rows.of(split)):
                encoded = backend.encode_batch_fast([rows.texts[i] for i in chosen])
                made = framed(encoded, self.max_length)
                writers[split].append({**made, "label": rows.codes[chosen], "row_id": rows.ids[chosen]})
                about["truncated"][split] += sum(bool(one.overflowing) for one in encoded)
                about["tokens"][split] += int(made["length"].sum())

    def _write_stream(self, rows: Rows, number: int, about: JsonObject, writers: Writers) -> None:
        first = number * _PIECE_IDS
        for split in SPLITS:
            chosen = rows.of(split)
            chosen = chosen[np.argsort(keyed_hash(self.seed, rows.ids[chosen]), kind="stable")]
            for made in packed(self._documents(rows, chosen), self.max_length, about["tokens"], split):
                writers[split].append({"tokens": made, "row_id": np.arange(first, first + len(made))})
                first += len(made)

    def _documents(self, rows: Rows, chosen: Ids) -> Iterator[Ints]:
        """Tokens of some documents at a time, each with its start, and its end where that is another token."""
        backend = backend_of(self.tokenizer, None)
        continued, unfinished = set(rows.continued.tolist()), set(rows.unfinished.tolist())
        start = np.array([self.start_id], np.int32)
        end = np.array([] if self.end_id is None else [self.end_id], np.int32)
        for batch in _batches(rows, chosen):
            encoded = backend.encode_batch_fast([rows.texts[i] for i in batch], add_special_tokens=False)
            parts: list[Ints] = []
            for one, row in zip(encoded, rows.ids[batch].tolist(), strict=True):
                parts += [*([] if row in continued else [start]), np.array(one.ids, np.int32),
                          *([] if row in unfinished else [end])]
            yield np.concatenate(parts)


def _batches(rows: Rows, chosen: Ids) -> Iterator[Ids]:
    """Indices of rows, in order, as many at a time as are encoded at once."""
    start = size = 0
    for stop, row in enumerate(chosen.tolist()):
        if stop > start and (size >= _CHARACTERS_AT_ONCE or stop - start >= _TEXTS_AT_ONCE):
            yield chosen[start:stop]
            start, size = stop, 0
        size += len(rows.texts[row])
    if start < len(chosen):
        yield chosen[start:]


def packed(streams: Iterable[Ints], length: int, tokens: dict[str, int], split: str) -> Iterator[Ints]:
    """Rows (n, length + 1) of one stream; each begins with the last token of the one before, the last is padded: -1."""
    kept: list[Ints] = []
    size = 0
    for stream in streams:
        tokens[split] += len(stream)
        kept.append(stream)
        size += len(stream)
        if size > _ROWS_AT_ONCE * length:
            rows, rest = _cut(np.concatenate(kept), length)
            yield rows
            kept, size = [rest], len(rest)
    if size > 1:
        rows, rest = _cut(np.concatenate(kept), length)
        if len(rows):
            yield rows
        if len(rest) > 1:
            yield np.concatenate([rest, np.full(length + 1 - len(rest), -1, np.int32)])[None]


def _cut(stream: Ints, length: int) -> tuple[Ints, Ints]:
    """Its whole rows, and what is left, which begins with the last token of the last row."""
    count = (len(stream) - 1) // length
    if not count:
        return np.empty((0, length + 1), np.int32), stream
    whole = np.lib.stride_tricks.sliding_window_view(stream, length + 1)[: count * length : length]
    return whole, stream[count * length :]


def _sample(rows: Rows, seed: int, shown: Sequence[int] | None = None) -> list[tuple[int, int, int, str]]:
    """Test rows that stand for all: (row id, index in this piece's test rows, class or 0, text). shown: indices of
    those that may; None: all."""
    codes = np.zeros(len(rows.ids), np.int32) if rows.codes is None else rows.codes
    test = rows.of("test") if shown is None else np.array(shown, np.int64)
    places = np.argsort(keyed_hash(seed, rows.ids[test]), kind="stable")[:SAMPLE_ROWS]
    return [(int(rows.ids[row]), int(place), int(codes[row]), rows.texts[row])
            for place, row in zip(places.tolist(), test[places].tolist(), strict=True)]
