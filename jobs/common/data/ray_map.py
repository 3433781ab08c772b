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

from cluster.core import errors
from cluster.core.documents import JsonObject, parse_json

T = TypeVar("T")
_MOST_ANSWER = 1 << 30
_SCHEMA = pa.schema([("answer", pa.large_binary()), ("error", pa.string()), ("kind", pa.string())])


class _Item:
    """Anything, as a value that Ray Data does not look into."""

    def __init__(self, value: Any) -> None:
        self.value = value


def map_with_ray(items: Sequence[T], work: Callable[[T], JsonObject]) -> Iterator[JsonObject]:
    """`work` of each item, in order, a task for each, which is sent that item alone: plain JSON values.
    Raises: TrainyardError as `work` does."""
    import ray

    for_all_cores = len(items) >= ray.cluster_resources().get("CPU", 1)
    return _answers(items, in_order=True, work=functools.partial(_task, work, for_all_cores))


def map_with_actors(items: Sequence[T], make: Callable[[], Callable[[T], JsonObject]], *, actors: tuple[int, int],
                    cpus: float, gpus: float) -> Iterator[JsonObject]:
    """The same by actors, each of which keeps what `make` gives; answers come as they are there.

    actors: the least and the most of them; Ray Data adds one where items wait and the cluster has room, or can grow.
    cpus, gpus: of each. An item whose actor dies is given to another one, without an end: what is made counts, if it
    matters. Raises: TrainyardError as what is made does.
    """
    import ray.data

    pool = ray.data.ActorPoolStrategy(min_size=actors[0], max_size=min(actors[1], len(items)))
    return _answers(items, in_order=False, work=_Actor, fn_constructor_args=(make,), compute=pool, num_cpus=cpus,
                    num_gpus=gpus)


def _answers(items: Sequence[object], *, in_order: bool, work: Any, **options: Any) -> Iterator[JsonObject]:
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = in_order
    with _quiet(), ray.data.DataContext.current(context):
        rows = ray.data.from_items([{"item": _Item(item)} for item in items], override_num_blocks=len(items))
        done = rows.map_batches(work, batch_size=1, batch_format="numpy", **options)
        for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for answer, error, kind in zip(*map(table.column, _SCHEMA.names), strict=True):
                if error.is_valid:
                    raise getattr(errors, kind.as_py())(error.as_py())
                yield parse_json(answer.as_py(), most_bytes=_MOST_ANSWER)


class _Actor:
    """One of a pool."""

    def __init__(self, make: Callable[[], Callable[[Any], JsonObject]]) -> None:
        self._work = make()

    def __call__(self, batch: Any) -> object:
        return _answered(self._work, batch)


def _task(work: Callable[[Any], JsonObject], for_all_cores: bool, batch: Any) -> object:
    """Runs in a task: one item. Where there are tasks for all cores of the cluster, none tokenises with more threads
    than its one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if for_all_cores else "true"
    return _answered(work, batch)


def _answered(work: Callable[[Any], JsonObject], batch: Any) -> object:
    try:
        answers, error, kind = [json.dumps(work(item.value)) for item in batch["item"]], None, None
    except errors.TrainyardError as known:
        answers, error, kind = [None], str(known), type(known).__name__
    return pa.Table.from_arrays([pa.array(answers, pa.large_binary()), pa.array([error], pa.string()),
                                 pa.array([kind], pa.string())], schema=_SCHEMA)


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
