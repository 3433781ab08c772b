"""Which pieces of a set are made, whatever kind it is of, and a stop after some of them."""

from typing import Any

import pytest

from cluster.core.errors import StoppedError


def pieces_made(patch: pytest.MonkeyPatch, task: Any, most: int | None = None) -> list[int]:
    """The numbers of the pieces that the task fills from now on. most: raises StoppedError after so many."""
    fill, made = task._fill, list[int]()

    def counted(self: Any, piece: Any, writers: Any) -> Any:
        if len(made) == most:
            raise StoppedError("stopped")
        made.append(piece.number)
        return fill(self, piece, writers)

    patch.setattr(task, "_fill", counted)
    return made
