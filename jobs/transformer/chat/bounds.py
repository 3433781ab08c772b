"""How much a chat template may make on its way: what makes much of a little is looked at before it is done."""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import re
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MOST_CHARACTERS = 1 << 24
"""Of one rendering, and of each text that a template makes on its way."""
_MOST_MADE = 1 << 28
"""Characters of all texts that it makes on its way together."""
_MOST_NUMBER, _MOST_VALUES = 100_000, 1_000_000
_NUMBERS = re.compile(r"\d+")
_made: ContextVar[list[int]] = ContextVar("made")


def count_anew() -> None:
    """Before a rendering."""
    _made.set([0])


def checked(value: Any) -> Any:
    """The value, which is about to be written. Raises: SecurityError for one of very many parts."""
    waiting, count = list[Any]([value] if isinstance(value, dict | list | tuple) else []), 0
    while waiting:
        each = waiting.pop()
        count += 1
        if isinstance(each, str):
            check_length(len(each))
        elif isinstance(each, dict | list | tuple):
            count += len(each)
            if count > _MOST_VALUES:
                raise SecurityError(f"it writes a list of more than {_MOST_VALUES:,} values")
            waiting += each.values() if isinstance(each, dict) else each
    return value


def check_use(name: str, owner: str, args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Before a method of a text, or a filter, is called. Raises: SecurityError."""
    given = [*args, *kwargs.values()]
    check_numbers(*(each for each in given if isinstance(each, int)))
    texts = [each for each in given if isinstance(each, str)]
    if name == "replace" and len(texts) == 2:
        old, new = texts
        count = len(owner) + 1 if not old else owner.count(old)
        check_length(len(owner) + count * len(new))
    elif name in ("format", "format_map"):
        check_widths(owner)
        check_length(sum(map(len, texts)), owner.count("{") + owner.count("%") + 1)
    elif name in ("indent", "wordwrap", "translate", "expandtabs") and owner:
        most = max([4, *map(len, texts), *(each for each in given if isinstance(each, int))])
        check_length(len(owner) + most * (1 + len(owner) if name == "wordwrap" else 1 + owner.count("\n")
                                           + owner.count("\t")))


def check_length(size: int, times: int = 1) -> None:
    """Raises: SecurityError for a text of so many characters, so many times."""
    made = _made.get()
    made[0] += size * max(1, times)
    if size * max(1, times) > MOST_CHARACTERS or made[0] > _MOST_MADE:
        raise SecurityError(f"it makes a text of more than {MOST_CHARACTERS:,} characters")


def check_numbers(*numbers: Any) -> None:
    """Raises: SecurityError for numbers with which a little makes much."""
    if any(isinstance(number, int | float) and abs(number) > _MOST_NUMBER for number in numbers):
        raise SecurityError(f"it calculates with more than {_MOST_NUMBER:,}")


def check_widths(form: str) -> None:
    """Raises: SecurityError for a format whose fields are very wide together."""
    if "*" in form or sum(int(each[:9]) for each in _NUMBERS.findall(form)) > _MOST_NUMBER:
        raise SecurityError("it asks for a very wide text")
