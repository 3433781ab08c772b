"""Work of Ray Data tasks all over the cluster (decoding, tokenising),
its results handed out in order as if it were done here.

A row of the Ray dataset is an array, such as a batch of decoded images, as one binary value: Ray moves a few large
buffers, and nothing depends on its own types.
An expected error travels as a value too, so Ray neither retries it nor prints a stack trace.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import functools
import json
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.data.source import BATCH_BYTES, Fragment, ImageSpec

T = TypeVar("T")
_MOST_ANSWER = 1 << 30
_SCHEMA = pa.schema([("values", pa.large_binary()), ("error", pa.string())])


def decode_with_ray(fragments: Sequence[Fragment], spec: ImageSpec) -> Iterator[Array]:
    """Images of all fragments in order, (n, H, W, C) at a time. Raises: DataError as the fragments do."""
    for values in _in_order(fragments, lambda fragment: fragment.decode(spec)):
        yield np.frombuffer(values, spec.dtype).reshape(-1, *spec.shape)


def map_with_ray(items: Sequence[T], work: Callable[[T], JsonObject]) -> Iterator[JsonObject]:
    """`work` of each item, in order: plain JSON values, which are few. Raises: DataError as `work` does."""
    for answer in _in_order(items, lambda item: iter([np.frombuffer(json.dumps(work(item)).encode(), np.uint8)])):
        yield parse_json(answer.tobytes(), most_bytes=_MOST_ANSWER)


def _in_order(items: Sequence[T], work: Callable[[T], Iterator[Array]]) -> Iterator[Array]:
    """The bytes of all arrays that `work` gives for the items, in order; a task for each item, which is sent that item
    alone."""
    import ray.data
    from ray import cloudpickle

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 4 * BATCH_BYTES
    with _quiet(), ray.data.DataContext.current(context):
        rows = ray.data.from_arrow([pa.table({"item": [cloudpickle.dumps(item)]}) for item in items])
        done = rows.map_batches(functools.partial(_task, work), batch_size=1, batch_format="pyarrow")
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for values, error in zip(table.column("values"), table.column("error"), strict=True):
                if error.is_valid:
                    raise DataError(error.as_py())
                yield np.frombuffer(values.as_buffer(), np.uint8)


def _task(work: Callable[[Any], Iterator[Array]], batch: Any) -> Iterator[object]:
    """Runs in a task: one item, an array a row."""
    from ray import cloudpickle

    try:
        for item in batch.column("item"):
            for values in work(cloudpickle.loads(item.as_py())):
                yield pa.Table.from_arrays([_one_value(values), pa.nulls(1, pa.string())], schema=_SCHEMA)
    except DataError as error:
        yield pa.Table.from_arrays([pa.nulls(1, pa.large_binary()), pa.array([str(error)])], schema=_SCHEMA)


def _one_value(values: Array) -> object:
    """All bytes of an array as one binary value, without a copy."""
    offsets = np.array([0, values.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1,
                                 [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(values))])


@contextmanager
def _quiet() -> Generator[None]:
    """Ray Data's log lines go to its log file alone."""
    logger = logging.getLogger("ray.data")
    consoles = [handler for handler in logger.handlers if isinstance(handler, logging.StreamHandler)]
    for handler in consoles:
        logger.removeHandler(handler)
    try:
        yield
    finally:
        for handler in consoles:
            logger.addHandler(handler)
