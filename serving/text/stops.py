"""Stop sequences in a text that comes piece by piece."""

from collections.abc import Sequence


class Stops:
    """Lets text through up to the first stop sequence, and keeps back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._kept = stops, ""
        self.stopped = False

    def through(self, text: str) -> str:
        whole = self._kept + text
        places = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if places:
            self.stopped, self._kept = True, ""
            return whole[: min(places)]
        back = max((begun(whole, stop) for stop in self._stops), default=0)
        self._kept = whole[len(whole) - back :]
        return whole[: len(whole) - back]

    def rest(self) -> str:
        """What was kept back, when no more comes."""
        kept, self._kept = self._kept, ""
        return kept


def begun(text: str, stop: str) -> int:
    """How much of the text's end is the beginning of a stop sequence."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
