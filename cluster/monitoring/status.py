"""What `python -m cluster status` shows: nodes, resources, versions, running jobs, and problems with their remedy.

Read from the control store alone, each read with a deadline, so it answers about a sick cluster too.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cluster.core.control_store import Actor, Gcs, JobInfo, Node, reachable, silent_nodes
from cluster.local.cluster import CUT_OFF, LocalCluster, ended_nodes
from cluster.monitoring.run_status import RunStatus, read_runs, run_problems, run_table

_LONGEST_ID = 30
"""Columns of a job's id in a table, as Ray makes them; a longer one goes on in the next line."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """problems: one sentence each, with its remedy."""

    address: str
    dashboard_url: str
    versions: dict[str, str]
    nodes: list[Node]
    jobs: list[JobInfo]
    problems: list[str]
    runs: tuple[RunStatus, ...] = ()
    endpoints: tuple["Served", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Served:
    """An application of Ray Serve: its live replicas, and what they hold together."""

    application: str
    replicas: int
    cpus: float
    gpus: float


def read_status(address: str, local: LocalCluster | None = None) -> Status:
    """local: what `up` started, if that is the cluster at this address. Raises: ClusterError if it does not answer."""
    gcs = Gcs(address)
    nodes, versions = gcs.nodes(), gcs.versions()
    jobs = [job for job in gcs.jobs() if job.running]
    runs = read_runs(gcs, jobs)
    url = local.dashboard_url.removeprefix("http://") if local else gcs.read(b"dashboard", b"dashboard").decode()
    problems = [
        *_node_problems(nodes, local), *_silent_problems(nodes), *_version_problems(versions),
        *_waiting_problems(gcs.cluster_status(), nodes), *_dashboard_problems(url),
        *run_problems(runs, nodes),
    ]
    return Status(address=address, dashboard_url=f"http://{url}" if url else "", versions=versions, nodes=nodes,
                  jobs=jobs, problems=problems, runs=tuple(runs), endpoints=tuple(served(gcs.actors("serve"))))


def served(actors: Sequence[Actor]) -> list[Served]:
    """Returns what Serve's replicas hold, by application. Their names are SERVE_REPLICA::APPLICATION#DEPLOYMENT#ID."""
    by_application: dict[str, list[Actor]] = {}
    for actor in actors:
        kind, _, name = actor.name.partition("::")
        if kind == "SERVE_REPLICA":
            by_application.setdefault(name.partition("#")[0], []).append(actor)
    return [Served(application=name, replicas=len(found), cpus=sum(each.holds.get("CPU", 0.0) for each in found),
                   gpus=sum(each.holds.get("GPU", 0.0) for each in found)) for name, found in by_application.items()]


def show(status: Status, console: Console) -> None:
    console.print(f"[bold]Ray cluster[/bold] {status.address}  Ray {status.versions['ray']}  Python "
                  f"{status.versions['python']}")
    console.print(f"dashboard {status.dashboard_url or 'none'}")
    console.print(node_table(status.nodes))
    console.print(_job_table(status.jobs) if status.jobs else "no running jobs")
    if status.runs:
        console.print(run_table(status.runs))
    if status.endpoints:
        console.print(_endpoint_table(status.endpoints))
    for problem in status.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)
    if not status.problems:
        console.print("[green]no problems[/green]")


def node_table(nodes: list[Node]) -> Table:
    """What each node has, and how much of it is in use."""
    alive = [node for node in nodes if node.alive]
    table = Table("node", "address", "state", "CPUs", "GPUs", "memory, GiB", "objects, GiB",
                  title="nodes (in use of total)",
                  title_justify="left", show_footer=len(alive) > 1)
    for node in nodes:
        table.add_row(escape(node.name or node.node_id[:12]), node.ip,
                      "head" if node.is_head and node.usable else _state(node),
                      *_amounts([node] if node.alive else []))
    for column, text in zip(table.columns, ["all", "", f"{len(alive)} alive", *_amounts(alive)], strict=True):
        column.footer = text
    return table


def _job_table(jobs: list[JobInfo]) -> Table:
    """The id is whole on a terminal of 80 columns too: it is what `ray job stop` and `ray job logs` want."""
    ids = [job.submission_id or job.job_id for job in jobs]
    table = Table(Column("job", min_width=min(_LONGEST_ID, max(map(len, ids))), overflow="fold"),
                  Column("command", overflow="fold"), Column("running for", no_wrap=True), "driver on",
                  title="running jobs", title_justify="left")
    for job, name in zip(jobs, ids, strict=True):
        table.add_row(escape(name), escape(job.entrypoint), _age(time.time() - job.started), job.ip)
    return table


def _endpoint_table(endpoints: Sequence[Served]) -> Table:
    """What endpoints hold is in use on their nodes, though no job has it."""
    table = Table("application", "replicas", "CPUs", "GPUs", title="endpoints (held by their replicas)",
                  title_justify="left", show_footer=len(endpoints) > 1)
    for each in endpoints:
        table.add_row(escape(each.application), str(each.replicas), f"{each.cpus:g}", f"{each.gpus:g}")
    sums = ["all", str(sum(each.replicas for each in endpoints)), f"{sum(each.cpus for each in endpoints):g}",
            f"{sum(each.gpus for each in endpoints):g}"]
    for column, text in zip(table.columns, sums, strict=True):
        column.footer = text
    return table


def _state(node: Node) -> str:
    if not node.alive:
        return "removed" if node.removed else "dead"
    return "draining" if node.draining else "alive"


def _amounts(nodes: list[Node]) -> list[str]:
    def used(name: str, unit: float, form: str) -> str:
        total = sum(node.resources.get(name, 0.0) for node in nodes)
        free = sum(node.available.get(name, 0.0) for node in nodes)
        return f"{(total - free) / unit:{form}} of {total / unit:{form}}" if total else "–"

    return [used("CPU", 1, "g"), used("GPU", 1, "g"), used("memory", 2**30, ".1f"),
            used("object_store_memory", 2**30, ".1f")]


def _age(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _node_problems(nodes: list[Node], local: LocalCluster | None) -> list[str]:
    problems = [f"node {node.name or node.node_id[:12]} ({node.ip}) is dead: start it again, or ignore it if it was "
                "removed"
                for node in nodes if not node.alive and not node.removed]
    if not any(node.resources.get("CPU") for node in nodes if node.alive):
        problems.append("no live node has CPUs: add worker nodes")
    if local and not local.nodes:
        problems.append(CUT_OFF)
    return [*problems, *(ended_nodes(local) if local else [])]


def _silent_problems(nodes: list[Node]) -> list[str]:
    return [f"node {node.name or node.node_id[:12]} ({node.ip}) does not answer, though the cluster takes it for "
            "alive: it hangs, or cannot be reached from here; restart it, or remove it"
            for node in silent_nodes([n for n in nodes if n.alive])]


def _version_problems(versions: Mapping[str, str]) -> list[str]:
    ours = {"ray": version("ray"), "python": platform.python_version()}
    return [f"the cluster runs {name} {versions[name]}, this environment {ours[name]}: use `ray job submit`, or "
            "install the same version here" for name in ours if versions[name] not in ("", ours[name])]


def _waiting_problems(state: Any, nodes: list[Node]) -> list[str]:
    """Requests that wait for what no live node has at all."""
    resources = state.cluster_resource_state
    shapes = [request.request for request in resources.pending_resource_requests]
    shapes += [part for gang in resources.pending_gang_resource_requests for part in gang.requests]
    wanted = {tuple(sorted(shape.resources_bundle.items())) for shape in shapes}
    totals = [node.resources for node in nodes if node.alive]
    hopeless = [bundle for bundle in wanted if not any(_holds(total, bundle) for total in totals)]
    return [f"a task, actor or placement group waits for {_listed(bundle)}, which no node has: add such a node or "
            "cancel it"
            for bundle in hopeless]


def _holds(total: Mapping[str, float], bundle: tuple[tuple[str, float], ...]) -> bool:
    return all(total.get(name, 0.0) >= amount for name, amount in bundle)


def _listed(bundle: tuple[tuple[str, float], ...]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in bundle)


def _dashboard_problems(url: str) -> list[str]:
    if not url:
        return ["the cluster has no dashboard, so jobs cannot be submitted: restart it with one"]
    why = reachable(url)
    return [f"the dashboard at {url} does not answer ({why}), so jobs cannot be submitted: restart the "
            "cluster"] if why else []
