"""Where text comes from: the embedded sets, and files of Parquet, CSV, JSON Lines, WebDataset or plain text.

A source is a list of fragments in the order of their rows;
each can be pickled, and reads itself anywhere when it is asked to.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import bisect
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cluster.core.errors import DataError
from cluster.core.storage import FileInfo, Store
from jobs.common.config import require
from jobs.common.data.dataset import SPLITS, SplitName
from jobs.common.data.files import list_files, plain_name, reading
from jobs.common.data.found.split_names import Unread, by_split, not_read
from jobs.common.data.pieces import cut, in_pieces
from jobs.common.data.webdataset import samples
from jobs.transformer.text.config import OF_CONVERSATIONS, Task, TextDataConfig
from jobs.transformer.text.conversations import FORMATS as CONVERSATIONS
from jobs.transformer.text.conversations import ConversationFile, form_in
from jobs.transformer.text.embedded import languages, stdlib
from jobs.transformer.text.files import FORMATS, TABLES
from jobs.transformer.text.fragments import Cleaned, TextSource
from jobs.transformer.text.language import check_languages
from jobs.transformer.text.questions import questions
from jobs.transformer.text.text_file import TextFile
from jobs.transformer.text.text_rule import TextRule

_SCAN_BYTES = 8 << 20
Listing = list[tuple[str, int, float]]


def find_source(config: TextDataConfig, task: Task) -> TextSource:
    """The source of a config, with its texts cleaned; a file larger than a piece is several fragments.
    Raises: DataError if there is none that it can be; ConfigError."""
    found = _source(config, task)
    if config.chooses:
        require(not found.is_one_text, f"data.{config.chooses}", getattr(config, config.chooses),
                f"{config.uri} is one text, which has no rows to leave out: leave the option out, or give files that "
                "are texts each")
    elif config.rule == TextRule():
        return found
    if config.languages:
        check_languages(config.languages)
    return replace(found, fragments=tuple(Cleaned(fragment, config) for fragment in found.fragments))


def _source(config: TextDataConfig, task: Task) -> TextSource:
    if config.uri == "languages":
        return languages()
    if config.uri == "stdlib":
        return stdlib()
    if config.uri == "questions":
        return questions()
    found = _files(config.uri, config, task, None)
    given: dict[SplitName, str | None] = {"validation": config.val_uri, "test": config.test_uri}
    for split, uri in given.items():
        if uri is not None:
            found = found.without(split).and_also(_files(uri, config, task, split))
    order = sorted(range(len(found.files)), key=lambda place: SPLITS.index(found.files[place].split))
    files = [found.files[i] for i in order]
    most = config.piece_bytes(sum(file.size for file in files))
    # how long a text is, and in which language, is said of all of it
    parts = tuple(part for file in files
                  for part in ([file] if config.chooses and not file.is_table else _parts(file, most)))
    return TextSource(parts, [found.listing[i] for i in order], tuple(dict.fromkeys(file.split for file in files)),
                      is_one_text=any(file.part for file in files), files=len({file.path for file in files}),
                      contents=tuple(found.contents), left_out=found.unread)


@dataclass(frozen=True)
class _Files:
    """The files of a URI, with what the content of each is known by."""

    files: list[TextFile]
    listing: Listing
    contents: list[str]
    unread: Unread

    def without(self, split: SplitName) -> "_Files":
        kept = [place for place, file in enumerate(self.files) if file.split != split]
        return replace(self, files=[self.files[i] for i in kept], listing=[self.listing[i] for i in kept])

    def and_also(self, other: "_Files") -> "_Files":
        unread = {reason: [*self.unread.get(reason, []), *other.unread.get(reason, [])]
                  for reason in {**self.unread, **other.unread}}
        return _Files(self.files + other.files, self.listing + other.listing, self.contents + other.contents, unread)


def _files(uri: str, config: TextDataConfig, task: Task, split: SplitName | None) -> _Files:
    listing, labelled = list_files(uri), task == "classify"
    talks = task in OF_CONVERSATIONS
    endings = CONVERSATIONS if talks else FORMATS
    files = [file for file in listing.files if plain_name(file.path).endswith(endings)]
    tables = [file for file in files if plain_name(file.path).endswith(TABLES)]
    if not files:
        kinds = "Parquet, CSV or JSON Lines" if talks else "Parquet, CSV, JSON Lines, WebDataset or text"
        raise DataError(f"data {uri!r}: none of its {len(listing.files)} files ({listing.files[0].path} …) is {kinds} "
                        f"({', '.join(endings)})")
    if labelled and not tables:
        raise DataError(f"data {uri!r} holds plain text, which has no labels: to classify give Parquet, CSV or JSON "
                        "Lines with a text and a label column, or pass --task generate")
    chosen = tables or files
    groups, others = (dict[SplitName, list[FileInfo]]({split: list(chosen)}), Unread()) if split else by_split(
        uri, chosen, config.layout)
    left_out = others | not_read(listing.files, files, "files of another format") | not_read(
        files, chosen, "files of text beside tables")
    contents = replace(listing, files=tuple(chosen)).contents()
    columns = (config.text_column, *config.text_columns_join)
    if len(chosen) == 1 and not tables and split is None and not (config.val_uri or config.test_uri):
        found = _shares(listing.store, chosen[0], config)
        name = listing.store.identity(chosen[0].path)
        return _Files(found, [(f"{file.split} part {name}", chosen[0].size, chosen[0].mtime) for file in found],
                      contents, left_out)
    label = config.label_column if labelled else None
    make = functools.partial(TextFile, columns=columns, label_column=label)
    if talks:
        first = TextFile(listing.store, chosen[0].path, chosen[0].size, "train", options=config)
        wanted = "preference" if task == "prefer" else config.form
        make = functools.partial(ConversationFile, form=form_in(first, wanted))
    named = [(make(listing.store, file.path, file.size, of, options=config), file.mtime)
             for of, members in groups.items() for file in members]
    return _Files([file for file, _ in named],
                  [(f"{file.split} {listing.store.identity(file.path)}", file.size, mtime) for file, mtime in named],
                  contents, left_out)


def _shares(store: Store, file: FileInfo, config: TextDataConfig) -> list[TextFile]:
    """Of a single text its first 90% are training; the rest is validation, and test too."""
    whole = TextFile(store, file.path, file.size, "train", options=config)
    if not whole.can_be_cut:
        raise DataError(f"{whole.name} is one text, of which parts are to be training, validation and test rows, and "
                        "which cannot be cut as it is: unpack it, and write it as UTF-8")
    middle = _text_place(whole, file.size * 9 // 10)
    shares: dict[SplitName, tuple[int, int]] = {"train": (0, middle), "validation": (middle, file.size),
                                                "test": (middle, file.size)}
    return [replace(whole, split=split, part=part, size=part[1] - part[0]) for split, part in shares.items()]


# ── parts of a large file ──
def _parts(file: TextFile, most: int) -> list[TextFile]:
    if file.size <= most or not file.can_be_cut:
        return [file]
    with reading(file.name):
        if file.ending in ("parquet", "pq"):
            return _row_groups(file, most)
        first, last = file.part or (0, file.size)
        wanted = [first + end for _, end in cut(last - first, most)][:-1]
        if file.ending == "tar":
            places = _sample_places(file, wanted)
        elif file.ending in ("csv", "tsv") and file.options.quoting != "none":
            places = list(_csv_places(file, wanted))
        else:
            places = [_line_place(file, place) for place in wanted]
    ends = sorted({first, *(place for place in places if first < place < last), last})
    is_text = not file.is_table
    return [replace(file, part=(start, stop), size=stop - start, begins=not is_text or start == first,
                    ends=not is_text or stop == last) for start, stop in itertools.pairwise(ends)]


def _row_groups(file: TextFile, most: int) -> list[TextFile]:
    import pyarrow.parquet as pq

    with file.store.reading(file.path) as stream:
        about = pq.ParquetFile(stream, pre_buffer=False).metadata
        sizes: list[int] = [about.row_group(group).total_byte_size for group in range(about.num_row_groups)]
    pieces = in_pieces(range(len(sizes)), sizes.__getitem__, most)
    return [replace(file, part=(groups[0], groups[-1] + 1), size=sum(sizes[group] for group in groups))
            for groups in pieces]


def _sample_places(file: TextFile, wanted: list[int]) -> list[int]:
    """Where the first sample of a tar behind each of some bytes begins."""
    starts = [sample.start for sample in samples(file.store, file.path, lambda _: False)]
    return [starts[place] for each in wanted if (place := bisect.bisect_left(starts, each)) < len(starts)]


def _line_place(file: TextFile, place: int) -> int:
    """Where the first line behind a byte begins; of a text with very long lines, the first character."""
    with file.store.reading(file.path) as stream:
        stream.seek(place)
        at = place
        while data := stream.read(_SCAN_BYTES):
            if (found := data.find(b"\n")) >= 0:
                return at + found + 1
            if not file.is_table:
                return _text_place(file, place)
            at += len(data)
    return file.size


def _text_place(file: TextFile, place: int) -> int:
    """The first byte from there on that begins a character of UTF-8."""
    with file.store.reading(file.path) as stream:
        stream.seek(place)
        following = stream.read(4)
    return place + next((i for i, byte in enumerate(following) if byte & 0xC0 != 0x80), 0)


def _csv_places(file: TextFile, wanted: list[int]) -> Iterator[int]:
    """Where the first row behind each of some bytes begins: a line break between an even number of quotes."""
    todo, quotes, at = list(wanted), 0, 0
    with file.store.reading(file.path) as stream:
        while todo and (data := stream.read(_SCAN_BYTES)):
            start = 0
            while todo and (place := _row_begin(data, max(start, todo[0] - at), start, quotes)) is not None:
                begin, quotes = place
                yield at + begin
                start = begin
                todo = [each for each in todo if each >= at + begin]
            quotes += data.count(b'"', start)
            at += len(data)


def _row_begin(data: bytes, wanted: int, start: int, quotes: int) -> tuple[int, Any] | None:
    """The first row's beginning from `wanted` on, and the quotes before it; `quotes` are before `start`."""
    if wanted >= len(data):
        return None
    quotes += data.count(b'"', start, wanted)
    while (line := data.find(b"\n", wanted)) >= 0:
        quotes += data.count(b'"', wanted, line)
        wanted = line + 1
        if quotes % 2 == 0:
            return wanted, quotes
    return None
