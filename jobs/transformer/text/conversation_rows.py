"""Pass 2 over conversations: they become tokens and marks of what is learnt, and are packed whole into rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from jobs.common.data.dataset import SPLITS, Columns
from jobs.common.data.found.account import SHOWN, LeftOut
from jobs.common.data.found.bad_rows import BadRow, check_few, refuse
from jobs.common.data.pieces import summed
from jobs.common.data.prepared import Writers
from jobs.common.data.splits import keyed_hash
from jobs.transformer.chat.conversation import ChatTemplateError, LossOn
from jobs.transformer.chat.encode import ChatEncoder, ChatRow
from jobs.transformer.chat.packing import packed_rows, tokens_and_marks
from jobs.transformer.chat.rows import contents_of, from_text
from jobs.transformer.preference import pairs
from jobs.transformer.text.config import Task, TextDataConfig
from jobs.transformer.text.survey import Rows, Survey, merged

ROWS_AT_ONCE = 256


class LeftOutError(Exception):
    """A row that the config leaves out; the message says what such rows are."""


@dataclass(frozen=True)
class ConversationRows:
    """How the conversations of a piece are written."""

    encoder: ChatEncoder
    loss_on: LossOn
    data: TextDataConfig
    seed: int

    @property
    def width(self) -> int:
        """Tokens of a row: one more than a model reads."""
        return self.data.max_length + 1

    def write(self, rows: Rows, first: int, about: JsonObject, writers: Writers) -> list[int]:
        """first: the id of the first row. about: takes counts, by split but for `merged` and `unended`. Returns the
        indices of the test rows that are kept whole.

        Raises: DataError for rows that cannot be learnt, unless they are to be left out.
        """
        bad: list[BadRow] = []
        left: dict[str, LeftOut] = {}
        about |= {"learnt": dict.fromkeys(SPLITS, 0), "conversations": dict.fromkeys(SPLITS, 0)}
        whole, shown = Counter[str](), list[int]()
        for split in SPLITS:
            kept: list[tuple[int, Sequence[ChatRow]]] = []
            for index in map(int, rows.of(split)):
                try:
                    sides = self.sides(rows.texts[index])
                    fitting = self.fitting(sides)
                except ChatTemplateError as error:
                    bad.append((rows.describe(index), f"cannot be learnt: {error}"))
                    continue
                except LeftOutError as error:
                    so_far = left.get(why := str(error), LeftOut(0))
                    named = (rows.describe(index),) if so_far.count < SHOWN else ()
                    left[why] = so_far.merged(LeftOut(1, named))
                    continue
                about["truncated"][split] += fitting is not sides
                whole.update({name: sum(getattr(side, name) for side in sides) for name in ("merged", "unended")})
                kept.append((int(rows.ids[index]), fitting))
                shown += [index] * (split == "test" and fitting is sides)
            for columns in self.columns(kept, first):
                writers[split].append(columns)
                first += len(columns["row_id"])
            about["conversations"][split] = len(kept)
            about["tokens"][split] = sum(len(side.ids) for _, sides in kept for side in sides)
            about["learnt"][split] = sum(int(side.learnt.sum()) for _, sides in kept for side in sides)
        if self.data.bad_rows != "skip":
            refuse(bad, self.remedy)
        about |= {**dict(whole), "skipped": bad,
                  "left_out": {why: (each.count, each.first[:SHOWN]) for why, each in left.items()}}
        return shown

    # ── what differs for pairs: see preference/pair_rows.py ──
    remedy = "mend the conversation, or pass another --model.chat-template"

    def sides(self, text: str) -> Sequence[ChatRow]:
        """The conversations of a row. Raises: ChatTemplateError."""
        return [self.encoder.row(from_text(text), self.loss_on)]

    def fitting(self, sides: Sequence[ChatRow]) -> Sequence[ChatRow]:
        """The same, or what of them fits a row. Raises: LeftOutError, ChatTemplateError."""
        (row,) = sides
        if len(row.ids) <= self.width:
            return sides
        if self.data.too_long == "skip":
            raise LeftOutError(f"conversations of more than {self.width:,} tokens (--data.too-long, --data.max-length)")
        cut = row.cut(self.width)
        if not cut.learnt.any():
            raise LeftOutError(f"conversations of whose first {self.width:,} tokens none is learnt (--data.max-length)")
        return [cut]

    def columns(self, kept: Sequence[tuple[int, Sequence[ChatRow]]], first: int) -> Iterator[Columns]:
        """Some rows at a time, in an order that has nothing to do with how long conversations are. kept: the id of
        each row that was read, and its conversations. first: the id of the first row that is written."""
        found = [row for _, (row,) in kept]
        packed = packed_rows([len(row.ids) for row in found], self.width)
        hashes = keyed_hash(self.seed, np.array([row[0] for row in packed], np.int64))
        order: list[int] = np.argsort(hashes, kind="stable").tolist()
        for start in range(0, len(order), ROWS_AT_ONCE):
            some = order[start : start + ROWS_AT_ONCE]
            tokens, marks = tokens_and_marks([[found[each] for each in packed[row]] for row in some], self.width)
            yield {"tokens": tokens, "marks": marks, "row_id": first + np.arange(start, start + len(some))}


def said_in(text: str, task: Task) -> Iterable[str]:
    """What people say in what is kept of a row."""
    if task == "prefer":
        return pairs.contents_of(pairs.from_text(text))
    return contents_of(from_text(text)) if task == "chat" else (text,)


def counts_of(abouts: Sequence[JsonObject]) -> JsonObject:
    """For a set's details: what the pieces have counted of conversations."""
    return {**{name: summed(abouts, name) for name in ("learnt", "conversations")},
            **{name: sum(int(about.get(name, 0)) for about in abouts) for name in ("merged", "unended")}}


def lines_of(details: JsonObject, loss_on: LossOn) -> Iterator[str]:
    """What to say of them."""
    learnt = sum(details["learnt"].values()) / max(1, sum(details["tokens"].values()))
    what, which = (("pairs", "of the last answers") if details["task"] == "prefer" else
                   ("conversations", f"--train.loss-on {loss_on}"))
    yield (f"{sum(details['conversations'].values()):,} {what}, of the form {details['form']}; {learnt:.1%} of "
           f"their tokens are learnt ({which})")
    if details["merged"]:
        yield (f"{details['merged']:,} tokens are not learnt, as the tokenizer has merged in them what an assistant "
               "writes with what it does not")
    if details["unended"]:
        yield (f"WARNING: the end of {details['unended']:,} turns of assistants is not learnt, so that a model may not "
               "stop there: the chat template writes none, or the tokenizer has merged it with what follows")


def with_left_out(found: Survey, abouts: Sequence[JsonObject], data: TextDataConfig) -> Survey:
    """With the conversations that pass 2 has left out. Raises: DataError where they are too many, or none is left of a
    split."""
    skipped = [(where, why) for about in abouts for where, why in about.get("skipped", ())]
    check_few([*found.skipped, *skipped], found.num_rows + len(found.skipped), data)
    more = [(why, LeftOut(*of)) for about in abouts for why, of in about.get("left_out", {}).items()]
    kept = counts_of(abouts)["conversations"]
    if empty := [split for split in SPLITS if not kept[split]]:
        whys = [f"{of.count:,} {why}" for why, of in merged(more).items()]
        whys += [f"{len(skipped):,} that cannot be learnt, the first of which {skipped[0][1]}"] if skipped else []
        raise DataError(f"data {data.uri!r} leaves no {empty[0]} rows: left out are {', '.join(whys) or 'all'}")
    return replace(found, skipped=(*found.skipped, *skipped), unwanted=merged([*found.unwanted.items(), *more]))
