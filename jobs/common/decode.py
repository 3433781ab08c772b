"""Fragments decoded by Ray Data tasks all over the cluster, their rows handed out in order as if they had been read here.

A row of the Ray dataset is a batch of decoded images as one binary value: Ray moves a few large buffers, and nothing depends
on its own types. An expected error travels as a value too, so Ray neither retries it nor prints a stack trace.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import functools
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import DataError
from jobs.common.sources.source import BATCH_BYTES, Fragment, ImageSpec

_SCHEMA = pa.schema([("images", pa.large_binary()), ("error", pa.string())])


def decode_with_ray(fragments: Sequence[Fragment], spec: ImageSpec) -> Iterator[npt.NDArray[Any]]:
    """Images of all fragments in order, (n, H, W, C) at a time. Raises: DataError as the fragments do."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 4 * BATCH_BYTES
    with _quiet(), ray.data.DataContext.current(context):
        dataset = ray.data.range(len(fragments), override_num_blocks=len(fragments))
        decoded = dataset.map_batches(functools.partial(_decode, list(fragments), spec), batch_size=1)
        for table in decoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from _images(table, spec)


def _decode(fragments: list[Fragment], spec: ImageSpec, batch: Any) -> Iterator[Any]:
    """Runs in a task: one fragment, a batch of images a row."""
    try:
        for index in batch["id"]:
            for images in fragments[int(index)].decode(spec):
                yield pa.Table.from_arrays([_one_value(images), pa.nulls(1, pa.string())], schema=_SCHEMA)
    except DataError as error:
        yield pa.Table.from_arrays([pa.nulls(1, pa.large_binary()), pa.array([str(error)])], schema=_SCHEMA)


def _one_value(images: npt.NDArray[Any]) -> Any:
    """All bytes of an array as one binary value, without a copy."""
    offsets = np.array([0, images.nbytes], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(images)])


def _images(table: Any, spec: ImageSpec) -> Iterator[npt.NDArray[Any]]:
    for images, error in zip(table.column("images"), table.column("error"), strict=True):
        if error.is_valid:
            raise DataError(error.as_py())
        yield np.frombuffer(images.as_buffer(), spec.dtype).reshape(-1, *spec.shape)


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
