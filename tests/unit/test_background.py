"""Threads and tasks beside the caller's: what ends one is raised where somebody waits for it,
and logged where nobody does."""

import ast
import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.core.background import in_background, in_loop, logged
from cluster.core.shadows import PACKAGES

ROOT = Path(__file__).parents[2]
STARTERS = {"Thread", "Timer", "ensure_future", "create_task", "run_coroutine_threadsafe", "start_new_thread"}
"""Names of what starts work whose error nobody need ever see."""


def fail() -> None:
    raise SystemExit("as the test wants it")


def test_whatever_ends_a_thread_is_raised_where_it_is_waited_for() -> None:
    assert in_background("fine", lambda: threading.current_thread().name).result(5) == "fine"
    with pytest.raises(SystemExit, match="as the test wants it"):
        in_background("failing", fail).result(5)


def test_what_ends_a_thread_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()
    future = in_background("failing", fail)
    future.add_done_callback(logged("the work"))
    future.add_done_callback(lambda _: told.set())
    assert told.wait(5)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "the work has ended with an error")
    assert "as the test wants it" in caplog.text


def test_what_ends_a_task_that_nobody_awaits_is_logged_and_its_cancelling_is_not(
    caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise ValueError("as the test wants it")

    async def both() -> None:
        kept = in_loop(broken(), "the work"), in_loop(asyncio.sleep(60), "the wait")
        await asyncio.sleep(0)
        kept[1].cancel()
        await asyncio.wait(kept)

    asyncio.run(both())
    assert [record.getMessage() for record in caplog.records] == ["the work has ended with an error"]
    assert "ValueError: as the test wants it" in caplog.text


def modules() -> Iterator[tuple[str, ast.Module]]:
    for folder in PACKAGES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def called(node: ast.AST) -> str:
    """The last part of the name of what is called."""
    function = node.func if isinstance(node, ast.Call) else None
    return (function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name)
            else "")


def test_every_thread_and_task_of_ours_is_started_in_the_one_place_that_loses_no_error() -> None:
    """And no future is dropped that may hold one."""
    starting = {path for path, tree in modules() for node in ast.walk(tree) if called(node) in STARTERS}
    assert starting == {"cluster/core/background.py"}
    dropped = [f"{path}:{node.lineno}" for path, tree in modules() for node in ast.walk(tree)
               if isinstance(node, ast.Expr)
               and called(node.value) in ("submit", "in_background", "in_loop", "run_in_executor")]
    assert dropped == []
