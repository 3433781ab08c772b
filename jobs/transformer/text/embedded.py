"""The embedded sets of text: phrases of 33 languages, and the Python standard library."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jobs.common.data.dataset import SPLITS, SplitName
from jobs.transformer.text.fragments import Texts, TextSource

LANGUAGES = (
    "en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi", "pl", "cs", "sk", "hu", "ro", "tr", "id", "vi",
    "sw", "eu",
    "ca", "hr", "sl", "lt", "lv", "et", "is", "ga", "cy", "sq", "az", "uz",
)


def languages() -> TextSource:
    """The phrases of 33 languages, known by how many there are and by the version of CLDR's data."""
    import babel

    version = float(".".join(babel.__version__.split(".")[:2]))
    return TextSource(tuple(Phrases(split) for split in SPLITS), [("languages", len(LANGUAGES), version)], SPLITS)


@dataclass(frozen=True)
class Phrases:
    """One split of the phrases of 33 languages: names of places, languages, scripts, currencies, months,
    days and units (CLDR)."""

    split: SplitName
    size: int = 0

    def describe(self, row: int) -> str:
        return f"row {row} of the embedded phrases"

    def read(self) -> Texts:
        import pyarrow as pa

        rows = [(text, language) for text, language, entity in phrases() if entity_split(entity) == self.split]
        return Texts([text for text, _ in rows], pa.array([language for _, language in rows], pa.string()))


def entity_split(entity: str) -> SplitName:
    """By a hash of the entity, so that nothing about one is seen in two splits."""
    place = int(hashlib.md5(entity.encode(), usedforsecurity=False).hexdigest(), 16) % 10
    return "test" if place >= 8 else "validation" if place == 7 else "train"


def phrases() -> list[tuple[str, str, str]]:
    """(phrase, language, entity) sorted by language and entity; a phrase that occurs in two languages is left out."""
    found: dict[str, set[str]] = {}
    rows: list[tuple[str, str, str]] = []
    for language in LANGUAGES:
        for entity, text in sorted(_entities(language)):
            found.setdefault(text, set()).add(language)
            rows.append((text, language, entity))
    kept = {(text, language): (text, language, entity) for text, language, entity in reversed(rows)
            if len(found[text]) == 1}
    return [kept[key] for key in reversed(kept)]


def _entities(language: str) -> Iterator[tuple[str, str]]:
    from babel import Locale, localedata

    locale = Locale.parse(language)
    named = {"territory": locale.territories, "language": locale.languages, "script": locale.scripts,
             "currency": locale.currencies}
    for kind, names in named.items():
        yield from ((f"{kind}/{key}", str(text)) for key, text in names.items() if text)
    for zone, about in locale.time_zones.items():
        if "city" in about:
            yield f"city/{zone}", str(about["city"])
    for kind, names in (("month", locale.months), ("day", locale.days)):
        yield from ((f"{kind}/{key}", str(text)) for key, text in names["format"]["wide"].items())
    for unit, styles in localedata.LocaleDataDict(cast(Any, localedata.load(str(locale))))["unit_patterns"].items():
        patterns = styles.get("long", {})
        for pattern in patterns.values() if hasattr(patterns, "values") else ():
            text = str(pattern).replace("{0}", "").strip()
            if text and "{" not in text:
                yield f"unit/{unit}", text


def stdlib() -> TextSource:
    """The Python standard library's own source, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}
    paths = sorted(p for p in root.rglob("*.py") if not left_out & set(p.relative_to(root).parts[:-1]))
    named: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
    for path in paths:
        relative = path.relative_to(root).as_posix()
        place = int(hashlib.md5(relative.encode(), usedforsecurity=False).hexdigest(), 16) % 100
        named["train" if place < 64 else "validation" if place < 80 else "test"].append(relative)
    fragments = tuple(Programs(split, str(root), tuple(names)) for split, names in named.items())
    listing = [(str(p.relative_to(root)), p.stat().st_size, 0.0) for p in paths]
    return TextSource(fragments, listing, SPLITS)


@dataclass(frozen=True)
class Programs:
    """One split of the Python standard library's own source, a file a document;
    a file that is not UTF-8 is left out."""

    split: SplitName
    root: str
    paths: tuple[str, ...]
    size: int = 0

    def describe(self, row: int) -> str:
        return f"{self.root}/{self.paths[row]}"

    def read(self) -> Texts:
        texts: list[str] = []
        for path in self.paths:
            try:
                texts.append((Path(self.root) / path).read_bytes().decode())
            except UnicodeDecodeError:
                continue
        return Texts([text for text in texts if text.strip()])
