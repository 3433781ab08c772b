"""The embedded conversations: what countries are called in other languages, and what is paid with there (CLDR).

Each fact is asked about in several ways; one way of each is kept from training, so that a held-out question is about
something that was learnt, and was never asked like that.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

from jobs.common.data.dataset import SPLITS, SplitName
from jobs.transformer.chat.conversation import Conversation
from jobs.transformer.chat.rows import as_text
from jobs.transformer.text.fragments import Texts, TextSource

LANGUAGES = ("de", "fr", "es", "it", "pl", "fi")
_DAY = date(2025, 1, 1)
_NAMED = ("What is {country} called in {language}?", "How do you say {country} in {language}?",
          "{country}: what is its name in {language}?", "Tell me the {language} name of {country}.")
_FOUND = ("Which country is called {name} in {language}?", "What does {name} mean in {language}?",
          "{name} is the {language} name of which country?")
_PAID = ("Which currency is used in {country}?", "What do people pay with in {country}?",
         "What is the currency of {country}?")
Told = list[tuple[str, str]]


def questions() -> TextSource:
    """The embedded conversations, known by how many languages they are about and by the version of CLDR's data."""
    import babel

    version = float(".".join(babel.__version__.split(".")[:2]))
    return TextSource(tuple(Questions(split) for split in SPLITS), [("questions", len(LANGUAGES), version)], SPLITS)


@dataclass(frozen=True)
class Questions:
    """One split of the embedded conversations."""

    split: SplitName
    size: int = 0

    def describe(self, row: int) -> str:
        return f"row {row} of the embedded questions"

    def read(self) -> Texts:
        return Texts([as_text(conversation) for split, conversation in _all() if split == self.split])


@functools.cache
def _all() -> tuple[tuple[SplitName, Conversation], ...]:
    """Of each fact the ways to ask: one for test, one for validation where there are four, the others for training."""
    made: list[tuple[SplitName, Conversation]] = []
    for key, ways in _facts():
        order = sorted(range(len(ways)), key=lambda way: _hash(f"{key} {way}"))
        for place, way in enumerate(order):
            split: SplitName = "test" if place == 0 else "validation" if place == 1 and len(ways) > 3 else "train"
            turns = [{"role": role, "content": text} for asked, answer in ways[way]
                     for role, text in (("user", asked), ("assistant", answer))]
            made.append((split, Conversation(tuple(turns))))
    return tuple(made)


def _facts() -> Iterator[tuple[str, list[Told]]]:
    """Of each fact a key, and the ways to ask about it: questions with their answers."""
    from babel import Locale
    from babel.numbers import get_currency_name, get_territory_currencies

    english = Locale.parse("en")
    countries = {code: str(name) for code, name in sorted(english.territories.items())
                 if len(code) == 2 and code.isalpha() and get_territory_currencies(code, _DAY)}
    named = {language: Locale.parse(language).territories for language in LANGUAGES}
    spoken = {language: str(english.languages[language]) for language in LANGUAGES}
    for (code, country), language in itertools.product(countries.items(), LANGUAGES):
        name, other = str(named[language].get(code, "")), LANGUAGES[_hash(f"{code} {language}") % len(LANGUAGES)]
        if not name or name == country:
            continue
        about = {"country": country, "language": spoken[language], "name": name}
        once: list[Told] = [[(way.format(**about), name)] for way in _NAMED]
        if other != language and (second := named[other].get(code)):
            follow = (f"And in {spoken[other]}?", str(second))
            once[-1] = [*once[-1], follow]
            once.append([*once[0], follow])
        yield f"name {code} {language}", once
        yield f"country {code} {language}", [[(way.format(**about), country)] for way in _FOUND]
    for code, country in countries.items():
        (currency, *_) = get_territory_currencies(code, _DAY)
        answer = f"The {get_currency_name(currency, locale='en')}."
        yield f"currency {code}", [[(way.format(country=country), answer)] for way in _PAID]


def _hash(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:12], 16)
