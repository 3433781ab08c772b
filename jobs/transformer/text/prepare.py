"""Text becomes Parquet blocks of tokens once: read, split, tokenised in many processes, packed, kept in storage.

    dataset = prepare(config, Store.open(config.run.storage), use_ray=True, say=print)

To classify, a row is a text: `tokens` (max_length,) int32, -1 where there is none; `length`; `label`; `row_id`. To
generate, rows are cut from one stream of all documents, each begun by its start token: `tokens` (max_length + 1,), so
that every token is a target once and no position is wasted but in a split's last row.
The tokenizer's files, and some test texts, lie beside the blocks.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.core.documents import JsonObject
from cluster.core.errors import DataError
from cluster.core.storage import Store
from jobs.common.data.dataset import SPLITS, Column, Dataset, Split, SplitName
from jobs.common.data.prepared import Say, Writers, content_fingerprint, find_or_build, key_of, split_writers
from jobs.common.data.splits import assign, encode_labels, keyed_hash
from jobs.transformer.config import TransformerConfig
from jobs.transformer.text.fragments import TextFragment, Texts, TextSource
from jobs.transformer.text.sources import find_source, labels_of
from jobs.transformer.text.tokenizer import backend_of, choose, files_of, framed, identity_of, kind_of

FORMAT_VERSION = 4
SAMPLE_ROWS = 2000
RAY_CHARACTERS = 8_000_000
"""Smaller sources are tokenised here: starting Ray Data's tasks takes seconds."""
_TEXTS_AT_ONCE = 1000
_TASK_CHARACTERS = 2_000_000
Ints = npt.NDArray[np.int32]


@dataclass
class Read:
    """What pass 1 found: all texts in the order of their rows, each with its split, and its class if it has one."""

    texts: list[str]
    splits: npt.NDArray[np.int8]
    codes: npt.NDArray[np.int32] | None
    class_names: tuple[str, ...]
    empty: int

    def of(self, split: SplitName) -> npt.NDArray[np.int64]:
        """Row ids of a split."""
        return np.flatnonzero(self.splits == SPLITS.index(split))


def prepare(config: TransformerConfig, storage: Store, *, use_ray: bool, say: Say | None = None) -> Dataset:
    """The prepared text of a config: as it is there, or else built now.

    Raises: DataError, ConfigError; StorageError, StorageFullError if the storage cannot be written.
    """
    source = find_source(config.data, labelled=config.task == "classify")

    def build(store: Store, blocks: str) -> Dataset:
        return _build(_read(source, config, say), config, store, blocks, use_ray, say)

    data = config.data
    options = [config.task, data.text_column, list(data.text_columns_join), data.label_column, data.max_length,
               data.split_seed,
               data.max_train_rows, identity_of(config), FORMAT_VERSION]
    return find_or_build(storage, key_of(source.listing, options), build)


def read_texts(config: TransformerConfig) -> "Read":
    """The texts of a config with their splits and classes, as `prepare` has them. Raises: DataError."""
    return _read(find_source(config.data, labelled=config.task == "classify"), config, None)


# ── pass 1: texts, classes, splits ──
def _read(source: TextSource, config: TransformerConfig, say: Say | None) -> Read:
    fragments = source.fragments
    read = [fragment.read() for fragment in fragments]
    rows = [len(part.texts) for part in read]
    empty = sum(part.empty for part in read)
    if not sum(rows):
        why = f": all of its {empty} rows are empty" if empty else ""
        raise DataError(f"data {config.data.uri!r} holds no text{why}")
    if say and any(getattr(fragment, "share", None) for fragment in fragments):
        say(f"{config.data.uri} is one text: its first 90% is for training, the rest is validation and test at once")
    if empty and say:
        say(f"{empty:,} rows of {config.data.uri} are empty and left out")
    texts = [text for part in read for text in part.texts]
    if config.task == "classify":
        column = config.data.label_column
        codes, names = encode_labels(fragments, labels_of(fragments, read, column), column)
        splits = assign(codes, names, [f.split for f in fragments], rows, config.data.split_seed)
    else:
        codes, names, splits = None, (), _document_splits(fragments, read, source, config)
    found = Read(texts, splits, codes, names, empty)
    return _fewer(found, config)


def _document_splits(fragments: Sequence[TextFragment], read: Sequence[Texts], source: TextSource,
                     config: TransformerConfig) -> npt.NDArray[np.int8]:
    """A document's split: the source's own, or 64/16/20 by a hash of its row id."""
    splits = np.concatenate([np.full(len(part.texts), SPLITS.index(f.split), np.int8)
                             for f, part in zip(fragments, read, strict=True)])
    if len(source.splits_given) < len(SPLITS):
        training = np.flatnonzero(splits == 0)
        place = keyed_hash(config.data.split_seed, training) % np.uint64(100)
        for split, low, high in (("test", 80, 100), ("validation", 64, 80)):
            if split not in source.splits_given:
                splits[training[(place >= low) & (place < high)]] = SPLITS.index(split)
    for code, name in enumerate(SPLITS):
        if not (splits == code).any():
            raise DataError(f"data {config.data.uri!r}: its {len(splits)} documents leave none for {name}: give "
                            "--data.val-uri and --data.test-uri, or more documents")
    return splits


def _fewer(found: Read, config: TransformerConfig) -> Read:
    """Without the training rows beyond `data.max_train_rows`."""
    training, most = found.of("train"), config.data.max_train_rows
    if most is None or len(training) <= most:
        return found
    chosen = training[np.argsort(keyed_hash(config.data.split_seed + 1, training), kind="stable")[most:]]
    found.splits[chosen] = -1
    return found


# ── pass 2: tokens ──
def _build(found: Read, config: TransformerConfig, store: Store, blocks: str, use_ray: bool,
           say: Say | None) -> Dataset:
    if say:
        say(f"preparing {len(found.texts):,} texts of {config.data.uri}")
    tokenizer = choose(config, (found.texts[i] for i in found.of("train")))
    files, backend = files_of(tokenizer), tokenizer.backend_tokenizer.to_str()
    for name, data in files.items():
        store.write_bytes(f"{blocks}/tokenizer/{name}", data)
    details = _details(config, tokenizer, files, found)
    width = config.data.max_length + (config.task == "generate")
    columns = [Column("tokens", "int32", (width,)), Column("row_id", "int64")]
    if found.codes is not None:
        columns[1:1] = [Column("length", "int32"), Column("label", "int32")]
    with split_writers(store, blocks, columns, len(found.class_names)) as writers:
        (_write_rows if found.codes is not None else _write_stream)(found, config, backend, details, writers, use_ray)
        splits: dict[SplitName, Split] = {name: writer.finish() for name, writer in writers.items()}
    if found.codes is not None:
        _write_sample(found, config, store, blocks)
    _tell(details, splits, config, say)
    fingerprint = content_fingerprint({"details": details, "class_names": found.class_names}, writers)
    return Dataset(store=store, blocks=blocks, fingerprint=fingerprint, splits=splits, columns=tuple(columns),
                   class_names=found.class_names, details=details)


def _details(config: TransformerConfig, tokenizer: Any, files: dict[str, bytes], found: Read) -> JsonObject:
    digest = hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(files.items()))).hexdigest()
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = bos if bos is not None else eos
    if start is None and config.task == "generate":
        raise DataError(f"the tokenizer of {config.model.name} has neither a beginning nor an end of text: it cannot "
                        "keep documents apart")
    return {
        "task": config.task, "max_length": config.data.max_length, "vocab_size": len(tokenizer),
        "tokenizer": kind_of(config),
        "tokenizer_sha256": digest, "pad_id": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        "start_id": start, "end_id": eos if eos is not None and eos != start else None,
        "mask_id": tokenizer.mask_token_id,
        "special_ids": sorted(tokenizer.all_special_ids), "empty": found.empty,
        "truncated": dict.fromkeys(SPLITS, 0), "tokens": dict.fromkeys(SPLITS, 0),
        "bytes": {split: sum(len(found.texts[i].encode()) for i in found.of(split)) for split in SPLITS},
    }


def _write_rows(found: Read, config: TransformerConfig, tokenizer: str, details: JsonObject, writers: Writers,
                use_ray: bool) -> None:
    assert found.codes is not None
    length = config.data.max_length
    for split in SPLITS:
        ids, row = found.of(split), 0
        for encoded in _encoded([found.texts[i] for i in ids], tokenizer, length, use_ray):
            full, tokens = encoded[:, 0], encoded[:, 2:]
            chosen = ids[row : row + len(encoded)]
            writers[split].append({"tokens": tokens, "length": encoded[:, 1], "label": found.codes[chosen],
                                   "row_id": chosen})
            details["truncated"][split] += int(full.sum())
            details["tokens"][split] += int(encoded[:, 1].sum())
            row += len(encoded)


def _write_stream(found: Read, config: TransformerConfig, tokenizer: str, details: JsonObject, writers: Writers,
                  use_ray: bool) -> None:
    first = 0
    for split in SPLITS:
        ids = found.of(split)
        ids = ids[np.argsort(keyed_hash(config.data.split_seed, ids), kind="stable")]
        documents = _documents([found.texts[i] for i in ids], tokenizer, details, use_ray)
        for rows in packed(documents, config.data.max_length, details["tokens"], split):
            writers[split].append({"tokens": rows, "row_id": np.arange(first, first + len(rows))})
            first += len(rows)


def _documents(texts: list[str], tokenizer: str, details: JsonObject, use_ray: bool) -> Iterator[Ints]:
    """Each document's tokens, with its start, and its end where that is another token."""
    start, end = details["start_id"], details["end_id"]
    for flat in _encoded(texts, tokenizer, None, use_ray):
        count = int(flat[0])
        for tokens in np.split(flat[1 + count :], np.cumsum(flat[1 : count]) if count > 1 else []):
            yield np.concatenate([[start], tokens, [] if end is None else [end]]).astype(np.int32)


def packed(documents: Iterator[Ints], length: int, tokens: dict[str, int], split: str) -> Iterator[Ints]:
    """Rows (n, length + 1) of one stream; each begins with the last token of the one before, the last is padded: -1."""
    kept = np.empty(0, np.int32)
    for document in documents:
        tokens[split] += len(document)
        kept = np.concatenate([kept, document])
        count = (len(kept) - 1) // length
        if count >= 256:
            yield _cut(kept, count, length)
            kept = kept[count * length :]
    if (count := (len(kept) - 1) // length) > 0:
        yield _cut(kept, count, length)
        kept = kept[count * length :]
    if len(kept) > 1:
        yield np.concatenate([kept, np.full(length + 1 - len(kept), -1, np.int32)])[None]


def _cut(stream: Ints, count: int, length: int) -> Ints:
    return np.lib.stride_tricks.sliding_window_view(stream, length + 1)[: count * length : length]


def _encoded(texts: list[str], tokenizer: str, max_length: int | None, use_ray: bool) -> Iterator[Ints]:
    """In the order of the texts. With a length (n, 2 + length): cut?, length, tokens; else n, n lengths, tokens."""
    encode = functools.partial(_encode, tokenizer, max_length)
    batches = _batches(texts)
    if use_ray and len(batches) > 1 and sum(map(len, texts)) > RAY_CHARACTERS:
        from jobs.common.data.ray_map import map_with_ray

        results: Iterator[Ints] = (np.frombuffer(buffer, np.int32) for buffer in map_with_ray(batches, encode))
    else:
        results = (encode(batch) for batch in batches)
    for result in results:
        yield result if max_length is None else result.reshape(-1, 2 + max_length)


def _batches(texts: list[str]) -> list[list[str]]:
    batches: list[list[str]] = []
    size = _TASK_CHARACTERS
    for text in texts:
        if size >= _TASK_CHARACTERS or len(batches[-1]) >= _TEXTS_AT_ONCE * 20:
            batches.append([])
            size = 0
        batches[-1].append(text)
        size += len(text)
    return batches


def _encode(tokenizer: str, max_length: int | None, texts: list[str]) -> Ints:
    """Runs in a task: one batch of texts, flat."""
    backend = backend_of(tokenizer, max_length)
    if max_length is None:
        ids = [np.array(one.ids, np.int32) for one in backend.encode_batch_fast(texts, add_special_tokens=False)]
        return np.concatenate([np.array([len(ids), *map(len, ids)], np.int32), *ids])
    encoded = backend.encode_batch_fast(texts)
    rows = framed(encoded, max_length)
    cut = np.array([bool(one.overflowing) for one in encoded], np.int32)
    return np.concatenate([cut[:, None], rows["length"][:, None], rows["tokens"]], axis=1).reshape(-1)


def _tell(details: JsonObject, splits: dict[SplitName, Split], config: TransformerConfig, say: Say | None) -> None:
    if say is None:
        return
    if cut := sum(details["truncated"].values()):
        rows = sum(split.num_rows for split in splits.values())
        most = config.data.max_length
        say(f"{cut:,} of {rows:,} texts are longer than {most} tokens and were cut: --data.max-length takes more")
    if config.task == "generate":
        places = sum(split.num_rows for split in splits.values()) * config.data.max_length
        packed, padding = sum(details["tokens"].values()), waste(details, splits)
        say(f"packed {packed:,} tokens; {padding:.2%} of {places:,} positions are padding")


def waste(details: JsonObject, splits: dict[SplitName, Split]) -> float:
    """Fraction of the positions of packed rows that hold no target."""
    places = sum(split.num_rows for split in splits.values()) * int(details["max_length"])
    return 1 - (sum(details["tokens"].values()) - len(SPLITS)) / places


# ── beside the blocks ──
def _write_sample(found: Read, config: TransformerConfig, store: Store, blocks: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert found.codes is not None
    positions = np.argsort(keyed_hash(config.data.split_seed, found.of("test")), kind="stable")[:SAMPLE_ROWS]
    ids = found.of("test")[positions]
    columns = {"row_id": ids, "label": found.codes[ids], "text": [found.texts[i] for i in ids]}
    with store.writing(f"{blocks}/sample.parquet") as sink:
        pq.write_table(pa.table({"position": positions, **columns}), sink)
