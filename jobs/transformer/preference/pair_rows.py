"""Pass 2 over pairs: both conversations become tokens, of which the last answer's are marked."""

from collections import Counter

import numpy as np

from cluster.core.documents import JsonObject
from jobs.common.data.dataset import SPLITS
from jobs.common.data.found.account import SHOWN, LeftOut
from jobs.common.data.found.bad_rows import BadRow, refuse
from jobs.common.data.prepared import Writers
from jobs.transformer.chat.conversation import ChatTemplateError
from jobs.transformer.chat.encode import ChatRow
from jobs.transformer.chat.packing import tokens_and_marks
from jobs.transformer.preference.pairs import from_text
from jobs.transformer.text.conversation_rows import ConversationRows
from jobs.transformer.text.survey import Rows

_ROWS_AT_ONCE = 256


class PairRows(ConversationRows):
    """How the pairs of a piece are written: a row holds one, `tokens` and `marks` (2, max_length + 1), chosen first."""

    def write(self, rows: Rows, first: int, about: JsonObject, writers: Writers) -> list[int]:
        """first: unused, since a row has the id of its pair. about: takes counts, as of conversations. Returns the
        indices of the test rows that are kept.

        Raises: DataError for pairs that cannot be learnt, unless they are to be left out.
        """
        bad: list[BadRow] = []
        left = LeftOut(0)
        about |= {"learnt": dict.fromkeys(SPLITS, 0), "conversations": dict.fromkeys(SPLITS, 0)}
        whole, shown = Counter[str](), list[int]()
        for split in SPLITS:
            kept: list[tuple[int, list[ChatRow]]] = []
            for index in map(int, rows.of(split)):
                try:
                    sides = self._sides(rows.texts[index])
                except ChatTemplateError as error:
                    bad.append((rows.describe(index), f"cannot be learnt: {error}"))
                    continue
                if (longest := max(len(side.ids) for side in sides)) > self.width:
                    left = left.merged(LeftOut(1, (rows.describe(index),) if left.count < SHOWN else ()))
                    if self.data.too_long != "skip":
                        bad.append((rows.describe(index), f"has {longest:,} tokens, and --data.max-length "
                                    f"{self.data.max_length} takes {self.width:,}"))
                    continue
                whole.update({name: sum(getattr(side, name) for side in sides) for name in ("merged", "unended")})
                kept.append((int(rows.ids[index]), sides))
                shown += [index] * (split == "test")
            for start in range(0, len(kept), _ROWS_AT_ONCE):
                some = kept[start : start + _ROWS_AT_ONCE]
                written = tokens_and_marks([[side] for _, sides in some for side in sides], self.width)
                tokens, marks = (each.reshape(-1, 2, self.width) for each in written)
                writers[split].append({"tokens": tokens, "marks": marks, "row_id": np.array([row for row, _ in some])})
            about["conversations"][split] = len(kept)
            about["tokens"][split] = sum(len(side.ids) for _, sides in kept for side in sides)
            about["learnt"][split] = sum(int(side.learnt.sum()) for _, sides in kept for side in sides)
        if self.data.bad_rows != "skip":
            refuse(bad, "mend the pair, allow more tokens, or leave out what is too long with --data.too-long skip")
        over = f"pairs of more than {self.width:,} tokens (--data.too-long, --data.max-length)"
        about |= {**dict(whole), "skipped": bad,
                  "left_out": {over: (left.count, left.first[:SHOWN])} if self.data.too_long == "skip" else {}}
        return shown

    def _sides(self, text: str) -> list[ChatRow]:
        """Raises: ChatTemplateError, also for answers that are the same in tokens."""
        chosen, rejected = (self.encoder.row(side, "last") for side in from_text(text).sides)
        if np.array_equal(chosen.ids, rejected.ids):
            raise ChatTemplateError("chosen and rejected are the same tokens")
        return [chosen, rejected]
