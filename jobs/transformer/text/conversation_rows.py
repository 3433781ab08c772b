"""Pass 2 over conversations: they become tokens and marks of what is learnt, and are packed whole into rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from jobs.common.data.dataset import SPLITS
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

_ROWS_AT_ONCE = 256


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

        Raises: DataError for conversations that cannot be learnt, unless they are to be left out.
        """
        bad: list[BadRow] = []
        left: dict[str, LeftOut] = {}
        about |= {"learnt": dict.fromkeys(SPLITS, 0), "conversations": dict.fromkeys(SPLITS, 0)}
        whole, shown = Counter[str](), list[int]()
        for split in SPLITS:
            kept: list[ChatRow] = []
            for index in rows.of(split):
                row = self._encoded(rows, int(index), bad)
                if row is None:
                    continue
                fitting = row if len(row.ids) <= self.width else row.cut(self.width)
                if why := self._why_not(row, fitting):
                    so_far = left.get(why, LeftOut(0))
                    named = (rows.describe(int(index)),) if so_far.count < SHOWN else ()
                    left[why] = so_far.merged(LeftOut(1, named))
                    continue
                about["truncated"][split] += fitting is not row
                whole.update({"merged": row.merged, "unended": row.unended})
                kept.append(fitting)
                shown += [int(index)] * (split == "test" and fitting is row)
            for tokens, marks in self._packed(kept):
                writers[split].append({"tokens": tokens, "marks": marks,
                                       "row_id": np.arange(first, first + len(tokens))})
                first += len(tokens)
            about["conversations"][split] = len(kept)
            about["tokens"][split] = sum(len(row.ids) for row in kept)
            about["learnt"][split] = sum(int(row.learnt.sum()) for row in kept)
        if self.data.bad_rows != "skip":
            refuse(bad, "mend the conversation, or pass another --model.chat-template")
        about |= {**dict(whole), "skipped": bad,
                  "left_out": {why: (each.count, each.first[:SHOWN]) for why, each in left.items()}}
        return shown

    def _encoded(self, rows: Rows, index: int, bad: list[BadRow]) -> ChatRow | None:
        try:
            return self.encoder.row(from_text(rows.texts[index]), self.loss_on)
        except ChatTemplateError as error:
            bad.append((rows.describe(index), f"cannot be learnt: {error}"))
            return None

    def _why_not(self, row: ChatRow, fitting: ChatRow) -> str:
        if fitting is row:
            return ""
        if self.data.too_long == "skip":
            return f"conversations of more than {self.width:,} tokens (--data.too-long, --data.max-length)"
        return "" if fitting.learnt.any() else (
            f"conversations of whose first {self.width:,} tokens none is learnt (--data.max-length)")

    def _packed(self, kept: list[ChatRow]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Some rows at a time, in an order that has nothing to do with how long conversations are."""
        packed = packed_rows([len(row.ids) for row in kept], self.width)
        hashes = keyed_hash(self.seed, np.array([row[0] for row in packed], np.int64))
        order: list[int] = np.argsort(hashes, kind="stable").tolist()
        for start in range(0, len(order), _ROWS_AT_ONCE):
            some = order[start : start + _ROWS_AT_ONCE]
            yield tokens_and_marks([[kept[each] for each in packed[row]] for row in some], self.width)


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
        yield (f"WARNING: the chat template writes no end behind {details['unended']:,} turns of assistants: where to "
               "stop is not learnt there")


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
