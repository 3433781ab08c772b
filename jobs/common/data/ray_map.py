"""Work of Ray Data tasks all over the cluster (decoding, tokenising),
its results handed out in order as if it were done here.

A row of the Ray dataset is an array, such as a batch of decoded images, as one binary value: Ray moves a few large
buffers, and nothing depends on its own types.
An expected error travels as a value too, so Ray neither retries it nor prints a stack trace.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import functools
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from cluster.core.errors import DataError
from jobs.common.arrays import Array
from jobs.common.data.source import BATCH_BYTES, Fragment, ImageSpec

T = TypeVar("T")
_SCHEMA = pa.schema([("values", pa.large_binary()), ("error", pa.string())])


def decode_with_ray(fragments: Sequence[Fragment], spec: ImageSpec) -> Iterator[Array]:
    """Images of all fragments in order, (n, H, W, C) at a time. Raises: DataError as the fragments do."""
    for values in _in_order(list(fragments), lambda fragment: fragment.decode(spec)):
        yield np.frombuffer(values, spec.dtype).reshape(-1, *spec.shape)


def map_with_ray(items: Sequence[T], work: Callable[[T], Array]) -> Iterator[Array]:
    """`work` of each item, in order, as an array of its bytes. Raises: DataError as `work` does."""
    yield from _in_order(list(items), lambda item: iter([work(item)]))


def _in_order(items: list[T], work: Callable[[T], Iterator[Array]]) -> Iterator[Array]:
    """The bytes of all arrays that `work` gives for the items, in order; a task for each item."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 4 * BATCH_BYTES
    with _quiet(), ray.data.DataContext.current(context):
        shared = ray.put(items)
        rows = ray.data.range(len(items), override_num_blocks=len(items))
        done = rows.map_batches(functools.partial(_task, shared, work), batch_size=1)
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for values, error in zip(table.column("values"), table.column("error"), strict=True):
                if error.is_valid:
                    raise DataError(error.as_py())
                yield np.frombuffer(values.as_buffer(), np.uint8)


def _task(shared: Any, work: Callable[[T], Iterator[Array]], batch: Any) -> Iterator[object]:
    """Runs in a task: one item, an array a row."""
    import ray

    items = ray.get(shared)
    try:
        for index in batch["id"]:
            for values in work(items[int(index)]):
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
