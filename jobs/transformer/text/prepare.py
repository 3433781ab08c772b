"""Text becomes Parquet blocks of tokens once: read, split, tokenised, packed and written, in many tasks.

    dataset = prepare(config, Store.open(config.run.storage), use_ray=True, say=print)

To classify, a row is a text: `tokens` (max_length,) int32, -1 where there is none; `length`; `label`; `row_id`. To
generate, rows are cut from a stream of documents: `tokens` (max_length + 1,). To chat, rows hold whole conversations:
`tokens`, and `marks` (max_length + 1,) uint8 of what is learnt and where one begins (chat/packing.py). To prefer, each
is of a pair, (2, max_length + 1). Pass 1 counts (survey.py); a tokenizer is trained on a sample; pass 2 writes
(writing.py). Beside the blocks lie the tokenizer's files, some test texts, and a hash of every text.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.dataset import SPLITS, Column, Dataset, Split, SplitName
from jobs.common.data.found.account import DROPPED, NEAR, SHOWN, Account, LeftOut
from jobs.common.data.found.bad_rows import list_skipped
from jobs.common.data.found.near_texts import KEYS_FOLDER, RUNS_FOLDER, NearTexts, find_near
from jobs.common.data.found.repeats import Repeats, find_repeats, forget
from jobs.common.data.pieces import (
    HASHES_FOLDER,
    Teller,
    Writing,
    for_each,
    joined,
    older_fingerprint,
    summed,
    unfinished,
)
from jobs.common.data.prepared import Say, find_or_build, fingerprint_of, key_of
from jobs.common.data.splits import keyed_hash
from jobs.transformer.chat.answers import end_of_answer
from jobs.transformer.chat.encode import ChatEncoder
from jobs.transformer.chat.template import ChatTemplate
from jobs.transformer.config import TransformerConfig
from jobs.transformer.preference.pair_rows import PairRows
from jobs.transformer.text import conversation_rows
from jobs.transformer.text.config import OF_CONVERSATIONS, TextDataConfig
from jobs.transformer.text.conversation_rows import ConversationRows
from jobs.transformer.text.fragments import TextSource
from jobs.transformer.text.sources import find_source
from jobs.transformer.text.survey import PieceRows, Rule, Survey, read_piece, survey
from jobs.transformer.text.tokenizer import choose, files_of, identity_of, is_trained_here, kind_of
from jobs.transformer.text.writing import SAMPLE_ROWS, Task

FORMAT_VERSION = 5
_READABLE_VERSIONS = (4,)
"""Of prepared text that is used where it lies: version 4 was written in one piece."""
RAY_BYTES = 8 << 20
"""Smaller sources are prepared in this process: starting tasks takes seconds."""
TOKENIZER_CHARACTERS = 32_000_000
"""What a tokenizer is trained on at most."""


def prepare(config: TransformerConfig, storage: Store, *, use_ray: bool, say: Say | None = None) -> Dataset:
    """The prepared text of a config: as it is there, or else built now.

    Raises: DataError, ConfigError; StorageError, StorageFullError if the storage cannot be written.
    """
    source = find_source(config.data, config.task)

    def build(store: Store, blocks: str) -> Dataset:
        found = survey(source, config, use_ray=use_ray, say=say)
        return _build(source, found, config, store, blocks, use_ray and found.size > RAY_BYTES, say)

    data = config.data
    options = [config.task, data.text_column, list(data.text_columns_join), data.label_column, data.max_length,
               data.split_seed, data.max_train_rows, identity_of(config)]
    options += data.choices
    options += [config.train.loss_on] * (config.task == "chat")
    options += [f"pieces of {data.piece_mb} MB"] * (data.piece_mb != TextDataConfig().piece_mb)
    older = [key_of(source.listing, [*options, version]) for version in _READABLE_VERSIONS]
    newest = key_of(source.listing, [*options, FORMAT_VERSION], source.contents)
    return find_or_build(storage, newest, build, older)


@dataclass
class Texts:
    """All texts of a config in the order of their rows, each with its split, and its class if it has one."""

    texts: list[str]
    splits: npt.NDArray[np.int8]
    codes: npt.NDArray[np.int32] | None

    def of(self, split: SplitName) -> npt.NDArray[np.int64]:
        """Row ids of a split."""
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def of_split(self, split: SplitName) -> list[str]:
        """Texts of a split."""
        return [self.texts[row] for row in self.of(split)]


def read_texts(config: TransformerConfig) -> Texts:
    """What `prepare` makes rows of, in memory. Raises: DataError."""
    found = survey(find_source(config.data, config.task), config, use_ray=False, say=None)
    pieces = [read_piece(found.rule, piece) for piece in found.pieces]
    codes = [piece.codes for piece in pieces if piece.codes is not None]
    return Texts([text for piece in pieces for text in piece.texts], np.concatenate([piece.splits for piece in pieces]),
                 np.concatenate(codes) if codes else None)


def _build(source: TextSource, found: Survey, config: TransformerConfig, store: Store, blocks: str, use_ray: bool,
           say: Say | None, near: NearTexts | None = None) -> Dataset:
    """near: what was found where this has written all rows before, to drop some."""
    tell, columns = say or _nobody, _columns(config)
    if source.is_one_text:
        tell(f"{config.data.uri} is one text: its first 90% is for training, the rest is validation and test at once")
    tell(f"preparing {found.num_rows:,} texts of {config.data.uri}")
    tokenizer = choose(config, _training_texts(found, config, use_ray))
    files = files_of(tokenizer)
    for name, data in files.items():
        store.write_bytes(f"{blocks}/tokenizer/{name}", data)
    details = _details(config, tokenizer, files, found)
    plan = [details, [(piece.first, piece.size, piece.dropped) for piece in found.pieces]]
    look = near is None and not source.is_one_text and config.data.near_duplicates != "ignore"
    writing = Writing(store, blocks, columns, len(found.class_names), unfinished(store, blocks, plan, say),
                      beside=(HASHES_FOLDER, *((KEYS_FOLDER, RUNS_FOLDER) if look else ())))
    task = Task(rule=found.rule, seed=config.data.split_seed, tokenizer=tokenizer.backend_tokenizer.to_str(),
                max_length=config.data.max_length, start_id=details["start_id"], end_id=details["end_id"],
                writing=writing, near_share=config.data.near_share if look else None,
                conversations=(PairRows if config.task == "prefer" else ConversationRows)(
                    ChatEncoder.of(tokenizer), config.train.loss_on, config.data, config.data.split_seed)
                if config.task in OF_CONVERSATIONS else None)
    answers = _written(task, found, config, use_ray, say)
    repeats, dropped = Repeats(), np.empty(0, np.int64)
    if not source.is_one_text:
        repeats, dropped = find_repeats(config.data, store, blocks, len(found.pieces), found.num_rows, use_ray=use_ray)
    splits, digests = joined(answers)
    if look:
        near = find_near(store, blocks, [piece.first for piece in found.pieces], found.num_rows, config.data.near_share,
                         without=dropped, drop=config.data.near_duplicates == "drop", use_ray=use_ray)
        _check_left(near, splits, config)
        dropped = np.union1d(dropped, near.dropped)
    if len(dropped):
        forget(store, blocks)
        return _build(source, found.without(dropped), config, store, blocks, use_ray, say, near)
    abouts = [answer["about"] for answer in answers]
    details |= {name: summed(abouts, name) for name in ("tokens", "truncated", "bytes")}
    if config.task in OF_CONVERSATIONS:
        details |= conversation_rows.counts_of(abouts)
        found = conversation_rows.with_left_out(found, abouts, config.data)
    about = {"details": dict(details), "class_names": found.class_names}
    fingerprint = fingerprint_of(about, digests)
    details |= older_fingerprint(about, answers) | _account(source, found, repeats, near, store, blocks).details
    _tell(details, splits, config, tell)
    return Dataset(store=store, blocks=blocks, fingerprint=fingerprint, splits=splits, columns=columns,
                   class_names=found.class_names, details=details)


def _written(task: Task, found: Survey, config: TransformerConfig, use_ray: bool, say: Say | None) -> list[JsonObject]:
    """Has all pieces written, and what stands for the test rows. Returns the pieces' answers."""
    sample: Sample = []
    tested, answers = 0, list[JsonObject]()
    teller = Teller(say, f"tokenising {config.data.uri}", found.size)
    for answer in teller.following(for_each(found.pieces, task, use_ray=use_ray), [each.size for each in found.pieces]):
        sample = _merged(sample, answer["about"].pop("sample", ()), tested, task.seed)
        tested += answer["rows"]["test"]
        answers.append(answer)
    if sample:
        _write_sample(sample, task.writing.store, task.writing.blocks)
    return answers


def _check_left(near: NearTexts, splits: dict[SplitName, Split], config: TransformerConfig) -> None:
    for (name, split), gone in zip(splits.items(), near.splits, strict=True):
        if gone and gone == split.num_rows:
            raise DataError(f"--data.near-duplicates drop leaves no {name} rows of {config.data.uri}: all {gone:,} are "
                            "nearly the same as an earlier row: pass report, or give other rows")


def _account(source: TextSource, found: Survey, repeats: Repeats, near: NearTexts | None, store: Store,
             blocks: str) -> Account:
    alike = near or NearTexts(Repeats())
    named = zip(alike.dropped[:SHOWN].tolist(), alike.stays.tolist(), strict=False)
    rows = {"rows without text": LeftOut(found.empty), **found.unwanted,
            DROPPED: LeftOut(found.num_dropped - len(alike.dropped)),
            NEAR: LeftOut(len(alike.dropped), tuple(f"row {row} as row {first}" for row, first in named)),
            **list_skipped(found.skipped, store, blocks)}
    return Account.of(source.files, [source.left_out], rows, repeats, near.repeats if near else None)


def _nobody(line: str) -> None:
    """Hears nothing."""


def _columns(config: TransformerConfig) -> tuple[Column, ...]:
    width = config.data.max_length + (config.task != "classify")
    shape = (2, width) if config.task == "prefer" else (width,)
    known = ((Column("length", "int32"), Column("label", "int32")) if config.task == "classify"
             else (Column("marks", "uint8", shape),) if config.task in OF_CONVERSATIONS else ())
    return (Column("tokens", "int32", shape), *known, Column("row_id", "int64"))


# ── the tokenizer ──
def _training_texts(found: Survey, config: TransformerConfig, use_ray: bool) -> Iterator[str]:
    """Training texts in order; of a large source some of each piece, chosen by a hash of their ids."""
    if not is_trained_here(config) or kind_of(config) == "bytes":
        return
    share = TOKENIZER_CHARACTERS / max(1, found.size)
    work = functools.partial(_some_texts, found.rule, share if share < 1 else None, config.data.split_seed)
    for answer in for_each(found.pieces, work, use_ray=use_ray):
        yield from (text for told in answer["texts"] for text in conversation_rows.said_in(told, config.task))


def _some_texts(rule: Rule, share: float | None, seed: int, piece: PieceRows) -> JsonObject:
    """Runs in a task. share: characters for each byte of the piece's files; None: all."""
    rows = read_piece(rule, piece)
    chosen = rows.of("train")
    if share is not None:
        order = chosen[np.argsort(keyed_hash(seed + 2, rows.ids[chosen]), kind="stable")]
        sizes = np.cumsum([len(rows.texts[i]) for i in order])
        chosen = np.sort(order[: max(1, int(np.searchsorted(sizes, share * piece.size, "right")))])
    return {"texts": [rows.texts[i] for i in chosen]}


def _details(config: TransformerConfig, tokenizer: Any, files: dict[str, bytes], found: Survey) -> JsonObject:
    digest = hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = bos if bos is not None else eos
    if start is None and config.task != "classify":
        raise DataError(f"the tokenizer of {config.model.origin} has neither a beginning nor an end of text: it cannot "
                        "keep documents apart")
    end = eos if eos is not None and eos != start else None
    known: JsonObject = {}
    if config.task in OF_CONVERSATIONS:
        turn = end_of_answer(ChatTemplate.of(tokenizer))
        end = tokenizer.convert_tokens_to_ids(turn) if turn else end
        known = {"form": getattr(found.pieces[0].fragments[0], "form", "messages")}
    return {
        **known,
        "task": config.task, "max_length": config.data.max_length, "vocab_size": len(tokenizer),
        "tokenizer": kind_of(config),
        "tokenizer_sha256": digest, "pad_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        "start_id": start, "end_id": end,
        "mask_id": tokenizer.mask_token_id, "special_ids": sorted(tokenizer.all_special_ids), "empty": found.empty,
    }


# ── what was found ──
def _tell(details: JsonObject, splits: dict[SplitName, Split], config: TransformerConfig, say: Say) -> None:
    if cut := sum(details["truncated"].values()):
        rows = sum(split.num_rows for split in splits.values())
        most = config.data.max_length
        say(f"{cut:,} of {rows:,} texts are longer than {most} tokens and were cut: --data.max-length takes more")
    if config.task != "classify":
        places = sum(split.num_rows for split in splits.values()) * config.data.max_length
        places *= 2 if config.task == "prefer" else 1
        packed, padding = sum(details["tokens"].values()), waste(details, splits)
        say(f"packed {packed:,} tokens; {padding:.2%} of {places:,} positions are padding")
    if config.task in OF_CONVERSATIONS:
        for line in conversation_rows.lines_of(details, config.train.loss_on):
            say(line)


def waste(details: JsonObject, splits: dict[SplitName, Split]) -> float:
    """Fraction of the positions of packed rows that hold no target, or no token of a conversation."""
    rows = sum(split.num_rows for split in splits.values())
    if "conversations" in details:
        sides = 2 if details["task"] == "prefer" else 1
        return 1 - sum(details["tokens"].values()) / (rows * sides * (int(details["max_length"]) + 1))
    places = rows * int(details["max_length"])
    streams = sum(rows > 0 for split in splits.values() for rows in split.pieces)
    return 1 - (sum(details["tokens"].values()) - streams) / places


# ── beside the blocks ──
Sample = list[tuple[int, int, int, str]]
"""Of test rows: row id, position in the split, class, text."""


def _merged(sample: Sample, more: Sample, positions: int, seed: int) -> Sample:
    """The rows that stand for all test rows so far. positions: test rows before those of `more`."""
    both = [*sample, *((row, positions + place, code, text) for row, place, code, text in more)]
    order = np.argsort(keyed_hash(seed, np.array([row for row, *_ in both], np.int64)), kind="stable")[:SAMPLE_ROWS]
    return [both[i] for i in order]


def _write_sample(sample: Sample, store: Store, blocks: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    ids, positions, labels, texts = (list(column) for column in zip(*sample, strict=True))
    table = pa.table({"position": pa.array(positions, pa.int64()), "row_id": pa.array(ids, pa.int64()),
                      "label": pa.array(labels, pa.int32()), "text": pa.array(texts, pa.string())})
    with store.writing(f"{blocks}/sample.parquet") as sink:
        pq.write_table(table, sink)
