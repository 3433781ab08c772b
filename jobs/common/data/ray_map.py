"""Work of Ray Data tasks all over the cluster (decoding, tokenising, writing),
its answers handed out in order as if it were done here.

A row of the Ray dataset is one value: an item, and then the JSON that its task answers.
An expected error travels as a value too, so Ray neither retries it nor prints a stack trace.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false

import functools
import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa

from cluster.core.documents import JsonObject, parse_json
from cluster.core.errors import DataError

T = TypeVar("T")
_MOST_ANSWER = 1 << 30
_SCHEMA = pa.schema([("answer", pa.large_binary()), ("error", pa.string())])


class _Item:
    """Anything, as a value that Ray Data does not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def map_with_ray(items: Sequence[T], work: Callable[[T], JsonObject]) -> Iterator[JsonObject]:
    """`work` of each item, in order, a task for each, which is sent that item alone: plain JSON values.
    Raises: DataError as `work` does."""
    import ray.data

    for_all_cores = len(items) >= ray.cluster_resources().get("CPU", 1)
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    with _quiet(), ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"item": _Item(item)} for item in items], override_num_blocks=len(items))
        done = rows.map_batches(functools.partial(_task, work, for_all_cores), batch_size=1, batch_format="numpy")
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for answer, error in zip(table.column("answer"), table.column("error"), strict=True):
                if error.is_valid:
                    raise DataError(error.as_py())
                yield parse_json(answer.as_py(), most_bytes=_MOST_ANSWER)


def _task(work: Callable[[Any], JsonObject], for_all_cores: bool, batch: Any) -> object:
    """Runs in a task: one item. Where there are tasks for all cores of the cluster, none tokenises with more threads
    than its one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if for_all_cores else "true"
    try:
        answers, error = [json.dumps(work(item.value)) for item in batch["item"]], None
    except DataError as known:
        answers, error = [None], str(known)
    return pa.Table.from_arrays([pa.array(answers, pa.large_binary()), pa.array([error], pa.string())], schema=_SCHEMA)


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
