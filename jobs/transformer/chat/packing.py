"""Whole conversations packed into rows of one length, none cut in two.

Best fit: a conversation, the longest first, goes into the row whose room is the least that it fits in. That needs at
most 11/9 of the rows that the best packing needs, and 6/9 of one (Dósa 2007, of first fit decreasing, which best fit
decreasing is never worse than in this bound); with conversations much shorter than a row, hardly more.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from jobs.transformer.chat.encode import ChatRow

LEARNT, BEGINS = 1, 2
"""Bits of `marks`: the token is a target, and it is the first of a conversation."""


def packed_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Which conversations each row holds, in the order in which the rows were begun. lengths: at most `width` each."""
    rows: list[list[int]] = []
    rooms: list[int] = []
    """Different rooms of the rows, in order, and which rows have each."""
    with_room: dict[int, list[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        place = bisect_left(rooms, lengths[number])
        if place == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, width
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[place], with_room[room]
        rows[row].append(number)
        left = room - lengths[number]
        if left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        with_room[left].append(row)
    return rows


def tokens_and_marks(rows: Sequence[Sequence[ChatRow]], width: int) -> tuple[npt.NDArray[np.int32],
                                                                            npt.NDArray[np.uint8]]:
    """Each (rows, width). Tokens are -1 where there is none."""
    tokens, marks = np.full((len(rows), width), -1, np.int32), np.zeros((len(rows), width), np.uint8)
    for number, conversations in enumerate(rows):
        place = 0
        for one in conversations:
            stop = place + len(one.ids)
            tokens[number, place:stop] = one.ids
            marks[number, place:stop] = one.learnt * LEARNT
            marks[number, place] |= BEGINS
            place = stop
    return tokens, marks
