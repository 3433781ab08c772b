"""Where the rows of a prepared split lie: in blocks, which the pieces of the preparation wrote each for itself.

A split that one writer made has one piece, in the split's own folder. Of several, each has a folder, and its last block
may be short; the index of a set keeps one number a piece, so it stays small however many blocks there are.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class BlockLayout:
    """Blocks are counted from 0 over all pieces in order, rows too (a row's position)."""

    def __init__(self, num_rows: int, block_rows: int, pieces: Sequence[int]) -> None:
        """pieces: the rows of each, in order, perhaps 0; empty where the split is one."""
        self.block_rows, self._is_one = block_rows, not pieces
        rows = np.array(pieces or (num_rows,), np.int64)
        self._first_row = np.concatenate([[0], np.cumsum(rows)])
        self._first_block = np.concatenate([[0], np.cumsum(-(-rows // block_rows))])

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """Each position's block, and its place in the block."""
        if self._is_one:
            return np.divmod(positions, self.block_rows)
        piece = np.searchsorted(self._first_row, positions, "right") - 1
        block, place = np.divmod(positions - self._first_row[piece], self.block_rows)
        return self._first_block[piece] + block, place

    def path(self, block: int) -> str:
        """Of its file, in the split's folder."""
        if self._is_one:
            return self.file(block)
        piece, within = self._piece(block)
        return f"{piece:06d}/{self.file(within)}"

    @staticmethod
    def file(block: int) -> str:
        """Of a block, among those of its writer."""
        return f"{block:08d}.parquet"

    def bounds(self, block: int) -> tuple[int, int]:
        """The positions of its first row, and of the row after its last."""
        piece, within = self._piece(block)
        first = int(self._first_row[piece]) + within * self.block_rows
        return first, min(first + self.block_rows, int(self._first_row[piece + 1]))

    def _piece(self, block: int) -> tuple[int, int]:
        """The piece that wrote it, and which of the piece's blocks it is."""
        piece = int(np.searchsorted(self._first_block, block, "right")) - 1
        return piece, block - int(self._first_block[piece])
