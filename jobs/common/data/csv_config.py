"""The config's options of how CSV files are written, for the jobs that read them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jobs.common.config import DataConfig, require


@dataclass(frozen=True, kw_only=True)
class CsvDataConfig(DataConfig):
    """Where the data comes from, how its files are written, and how it is split and read."""

    delimiter: str | None = None
    """What is between the columns of CSV files: one character, or `tab`; by default a comma, in *.tsv a tab."""
    quoting: Literal["auto", "none"] = "auto"
    """Whether a quote begins a text that may hold delimiters and line breaks; `none`: it is a character like others."""
    encoding: str | None = None
    """How the letters of text files are written, such as latin-1, cp1252 or utf-16; by default UTF-8."""

    decisive_choices: ClassVar[tuple[str, ...]] = (*DataConfig.decisive_choices, "delimiter", "quoting", "encoding")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.delimiter is None or self.delimiter == "tab" or (len(self.delimiter) == 1 and self.delimiter not in
                                                                      '"\n\r'),
                "data.delimiter", repr(self.delimiter), "give one character, or `tab`")
        require(self.encoding is None or _is_known(self.encoding), "data.encoding", self.encoding,
                "Python knows no such encoding: give one such as utf-8, latin-1, cp1252 or utf-16")

    def delimiter_of(self, path: str) -> str:
        """Of a file."""
        if self.delimiter is not None:
            return "\t" if self.delimiter == "tab" else self.delimiter
        return "\t" if ".tsv" in path.lower() else ","


def _is_known(encoding: str) -> bool:
    try:
        return bool("a".encode(encoding))
    except LookupError:  # also for one such as rot13, which is none of texts
        return False


def looks_delimited_by(line: str, delimiter: str) -> str | None:
    """Another delimiter that a header's line more likely has: one that is there, where its own is not."""
    if delimiter in line:
        return None
    found = next((other for other in ("\t", ";", "|", ",") if other != delimiter and other in line), None)
    return "tab" if found == "\t" else found


def conversion(data: bytes) -> str:
    """What to do about a file that is not of the encoding that is expected."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "it begins as UTF-16 does: pass --data.encoding utf-16"
    return "pass --data.encoding latin-1, or cp1252, or what it is"
