"""Texts as people really type them: what a classifier's accuracy is measured on beside the untouched text.

    PERTURBATIONS["typos"]("A text of the test split.", (seed, row_id))

Each is a function of the text and its key alone, and never makes a blank text of one that is not.
"""

import re
import unicodedata
from collections.abc import Callable

import numpy as np

from jobs.common.data.counter_rng import Purpose, raw_bits

Key = tuple[int, int]
"""(seed, row id)."""

TYPO_RATE = 0.1
_KEYBOARDS = ("qwertyuiop|asdfghjkl|zxcvbnm", "йцукенгшщзхъ|фывапролджэ|ячсмитьбю")
_PLAIN = str.maketrans({
    "ß": "ss", "ẞ": "SS", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th",
    "Þ": "Th",
    "æ": "ae", "Æ": "Ae", "œ": "oe", "Œ": "Oe", "ħ": "h", "Ħ": "H", "ŧ": "t", "Ŧ": "T", "ŋ": "n", "Ŋ": "N", "ı": "i",
    "ĸ": "k",
})
"""Letters of Latin scripts that Unicode does not take apart."""


def typos(text: str, key: Key) -> str:
    """About a tenth of the letters swapped with the next one, left out, doubled,
    or replaced by a neighbour on the keyboard."""
    letters = [place for place, char in enumerate(text) if char.isalpha()]
    bits = raw_bits(Purpose.TYPOS, *key, 0, 0, 1 + 3 * len(letters))
    # rounded up as often as makes its mean exact
    count = int(TYPO_RATE * len(letters) + (int(bits[0]) >> 11) * 2.0**-53)
    order, kinds, picks = bits[1:].reshape(3, -1)
    cells = list(text)
    for chosen in sorted(map(int, np.argsort(order, kind="stable")[:count]), reverse=True):
        _mistype(cells, letters[chosen], int(kinds[chosen] >> np.uint64(8)) % 4, int(picks[chosen] >> np.uint64(8)))
    return _unless_blank("".join(cells), text)


def lost_case(text: str, key: Key) -> str:
    """All letters small."""
    return text.lower()


def lost_accents(text: str, key: Key) -> str:
    """Letters without what stands above, below or through them, as on a keyboard that has only the plain ones.

    Unicode's decomposition (NFKD) without its marks of combining class 1 and 200 upwards; the classes between are
    vowels, tones and voicing of Arabic, Hebrew, Indic, Thai and Japanese writing.
    What remains is put together again (NFC): Hangul is.
    """
    apart = unicodedata.normalize("NFKD", text)
    bare = "".join(char for char in apart
                   if not (unicodedata.combining(char) == 1 or unicodedata.combining(char) >= 200))
    return _unless_blank(unicodedata.normalize("NFC", bare.translate(_PLAIN)), text)


def shortened(text: str, key: Key) -> str:
    """The first half of the words; of a single word, or a script without spaces, the first half of the characters."""
    words = list(re.finditer(r"\S+", text))
    if len(words) > 1:
        return text[: words[(len(words) + 1) // 2 - 1].end()]
    return text[: words[0].start() + (len(words[0][0]) + 1) // 2] if words else text


PERTURBATIONS: dict[str, Callable[[str, Key], str]] = {
    "typos": typos, "lost case": lost_case, "lost accents": lost_accents, "shortened": shortened,
}
ABOUT: dict[str, str] = {
    "typos": "a tenth of the letters swapped, left out, doubled, or replaced by a neighbour on the keyboard",
    "lost case": "all letters small",
    "lost accents": "letters without their accents",
    "shortened": "the first half of the words",
}
"""What each does, for a report."""


def _unless_blank(changed: str, text: str) -> str:
    return changed if changed.strip() else text


def _mistype(cells: list[str], place: int, kind: int, pick: int) -> None:
    """One typo, in place. kind: 0 swap, 1 leave out, 2 double, 3 neighbouring key;
    doubled where that is not possible."""
    char, following = cells[place], cells[place + 1] if place + 1 < len(cells) else ""
    near = _near(char)
    if kind == 0 and len(following) == 1 and following.isalpha() and following != char:
        cells[place], cells[place + 1] = following, char
    elif kind == 1:
        cells[place] = ""
    elif kind == 3 and near:
        cells[place] = near[pick % len(near)]
    else:
        cells[place] = char * 2


def _near(char: str) -> str:
    """The keys around a letter's own, in its case; none for a script whose keyboard is not known here."""
    small, base = char.lower(), unicodedata.normalize("NFD", char)[0].lower()
    near = _NEIGHBOURS.get(small) or _NEIGHBOURS.get(base, "")  # й has a key of its own, é lies on that of e
    return near.upper() if char.isupper() else near


def _neighbours(keyboard: str) -> dict[str, str]:
    """Of each key those beside it, and the two that touch it in the row above and in the row below."""
    rows = keyboard.split("|")
    places = {char: (row, column) for row, chars in enumerate(rows) for column, char in enumerate(chars)}
    steps = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
    at = {place: char for char, place in places.items()}
    return {char: "".join(at.get((row + down, column + right), "") for down, right in steps)
            for char, (row, column) in places.items()}


_NEIGHBOURS = {char: near for keyboard in _KEYBOARDS for char, near in _neighbours(keyboard).items()}
