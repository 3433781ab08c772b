"""Pass 2 over pairs: both conversations become tokens, of which the last answer's are marked."""

from collections.abc import Iterator, Sequence

import numpy as np

from jobs.common.data.dataset import Columns
from jobs.transformer.chat.conversation import ChatTemplateError
from jobs.transformer.chat.encode import ChatRow
from jobs.transformer.chat.packing import tokens_and_marks
from jobs.transformer.preference.pairs import from_text
from jobs.transformer.text.conversation_rows import ROWS_AT_ONCE, ConversationRows, LeftOutError


class PairRows(ConversationRows):
    """How the pairs of a piece are written: a row holds one, `tokens` and `marks` (2, max_length + 1), chosen first,
    and has the id of its pair."""

    remedy = "mend the pair, allow more tokens, or leave out what is too long with --data.too-long skip"

    def sides(self, text: str) -> Sequence[ChatRow]:
        """Raises: ChatTemplateError, also for answers that are the same in tokens."""
        chosen, rejected = (self.encoder.row(side, "last") for side in from_text(text).sides)
        if np.array_equal(chosen.ids, rejected.ids):
            raise ChatTemplateError("chosen and rejected are the same tokens")
        return [chosen, rejected]

    def fitting(self, sides: Sequence[ChatRow]) -> Sequence[ChatRow]:
        """The same: no pair is cut. Raises: LeftOutError, ChatTemplateError."""
        if (longest := max(len(side.ids) for side in sides)) <= self.width:
            return sides
        if self.data.too_long == "skip":
            raise LeftOutError(f"pairs of more than {self.width:,} tokens (--data.too-long, --data.max-length)")
        raise ChatTemplateError(f"it has {longest:,} tokens, and --data.max-length {self.data.max_length} takes "
                                f"{self.width:,}")

    def columns(self, kept: Sequence[tuple[int, Sequence[ChatRow]]], first: int) -> Iterator[Columns]:
        """first: unused."""
        for start in range(0, len(kept), ROWS_AT_ONCE):
            some = kept[start : start + ROWS_AT_ONCE]
            written = tokens_and_marks([[side] for _, sides in some for side in sides], self.width)
            tokens, marks = (each.reshape(-1, 2, self.width) for each in written)
            yield {"tokens": tokens, "marks": marks, "row_id": np.array([row for row, _ in some])}
