"""cluster/status.py: what is shown is what was said, and only what is wrong is a problem."""

import io
import time

import pytest
from rich.console import Console

from cluster.gcs import Job, Node
from cluster.status import Status, show

HEAD = Node(node_id="0f" * 28, name="head[1]", ip="127.0.0.1", port=1, alive=True, is_head=True, resources={"CPU": 1.0})


def shown(status: Status) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(status, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("text", ["python job.py --sizes [1,2] [red]", "python -c 'x[/a]'", "echo [bold]"])
def test_brackets_are_no_markup(text: str) -> None:
    job = Job(job_id="01", submission_id="[red]", entrypoint=text, ip="127.0.0.1", started=time.time(), running=True)
    seen = shown(Status(address="127.0.0.1:1", dashboard_url="", versions={"ray": "2", "python": "3"}, nodes=[HEAD], jobs=[job],
                        problems=[f"it was {text}"]))
    assert seen.count(text) == 2
    assert "[red]" in seen and "head[1]" in seen
