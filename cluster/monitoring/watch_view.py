"""How `python -m cluster watch` shows a page: on a terminal in place,
elsewhere as one block of plain text after another."""

import dataclasses
import time

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cluster.core.errors import ClusterError
from cluster.monitoring.status import node_table
from cluster.monitoring.watch import Application, EndpointRow, Page, RunRow, Watcher


def keep_showing(watcher: Watcher, console: Console, every_s: float) -> None:
    """Until Ctrl-C."""
    page = watcher.look()
    if not console.is_terminal:
        while True:
            console.print(drawn(page), soft_wrap=False)
            time.sleep(every_s)
            page = _again(watcher, page)
    with Live(drawn(page), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(drawn(page), refresh=True)
            time.sleep(every_s)
            page = _again(watcher, page)


def _again(watcher: Watcher, page: Page) -> Page:
    """A cluster that does not answer now is no reason to stop looking: the page says so."""
    try:
        return watcher.look()
    except ClusterError as error:
        return dataclasses.replace(page, alerts=[f"what is below is old: {error}"])


def drawn(page: Page) -> RenderableType:
    status = page.status
    parts: list[RenderableType] = [
        f"[bold]Ray cluster[/bold] {status.address}  {time.strftime('%H:%M:%S')}  dashboard "
        f"{status.dashboard_url or 'none'}",
        *(f"[red]alert:[/red] {escape(text)}" for text in page.alerts),
        *(f"[yellow]not looked at:[/yellow] {escape(text)}" for text in page.warnings),
        *([] if page.alerts else ["[green]no alerts[/green]"]),
        _run_table(page.runs) if page.runs else "no run trains",
        *([_endpoint_table(page.endpoints)] if page.endpoints else []),
        *([_application_table(page.applications)] if page.applications else ["no endpoint"]
          if not page.endpoints else []),
        node_table(status.nodes),
    ]
    return Group(*parts)


def _run_table(runs: list[RunRow]) -> Table:
    table = _table("runs", "run", "job", "workers", "step", "loss", "step, ms", "samples/s", "goodput", "restarts",
                   "lost steps",
                   "saving, s")
    for row in runs:
        values = row.values
        table.add_row(
            escape(row.run), escape(row.job), _of(values.get("workers"), "g"), _of(values.get("step"), ",.0f"),
            _of(values.get("loss"), ".4f"), _of(values.get("step_s"), ".1f", 1000),
            _of(values.get("samples_per_s"), ",.0f"),
            _of(values.get("goodput"), ".1%"), _of(values.get("restarts", 0.0), "g"),
            _of(values.get("lost_steps", 0.0), "g"),
            _of(values.get("checkpoint_s"), ".2f"))
    return table


def _endpoint_table(rows: list[EndpointRow]) -> Table:
    table = _table("endpoints (the last minute)", "model", "version", "requests", "per s", "5xx", "p50, ms", "p99, ms",
                   "queued")
    for row in rows:
        table.add_row(escape(row.model), escape(row.version), _of(row.requests, ",.0f"), _of(row.per_s, ".1f"),
                      _of(row.failed, ",.0f"), _of(row.p50_s, ".1f", 1000), _of(row.p99_s, ".1f", 1000),
                      _of(row.queued, "g"))
    return table


def _application_table(applications: list[Application]) -> Table:
    table = _table("Ray Serve", "application", "state", "deployment", "its state", "replicas")
    for each in applications:
        for number, (name, state, replicas) in enumerate(each.deployments or [("–", "–", 0)]):
            table.add_row(*((escape(each.name), each.status) if number == 0 else ("", "")), escape(name), state,
                          str(replicas))
    return table


def _table(title: str, *columns: str) -> Table:
    """Without lines: so 80 columns hold it."""
    return Table(*columns, title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)


def _of(value: float | None, form: str, times: float = 1.0) -> str:
    return "–" if value is None else f"{value * times:{form}}"
