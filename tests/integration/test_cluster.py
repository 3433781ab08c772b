"""`python -m cluster` and `connect()`, on real clusters of this machine: closed, guarded,
quick to find out what is wrong."""

import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.connect import connect, disconnect, probe
from cluster.core import auth
from cluster.core.control_store import Gcs
from cluster.core.errors import ClusterError
from cluster.local import cluster as local
from cluster.local.cluster import LocalCluster
from cluster.remote_processes import dump_stack, kill
from tests.nodes import add_node, remove_node

ROOT = Path(__file__).parents[2]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
RAY_VARIABLES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", *auth.AUTH_VARIABLES)


def cli(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cluster", *arguments], capture_output=True, text=True,
                          timeout=timeout,
                          check=False, cwd=ROOT, env={**os.environ, "COLUMNS": "120", **environment})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder of its own, for this module's processes and their children; no cluster in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in RAY_VARIABLES:
            patch.delenv(name, raising=False)
        folder = tmp_path_factory.mktemp("trainyard")
        patch.setenv("TRAINYARD_HOME", str(folder))
        patch.setenv("RAY_metrics_report_interval_ms", "1000")  # by itself Ray exports metrics every 10 s
        yield folder


@pytest.fixture(scope="module")
def up(home: Path) -> Iterator[LocalCluster]:
    """Started by the command line: a head without CPUs and two nodes of one CPU."""
    try:
        done = cli("up", "--nodes", "2", "--cpus-per-node", "1")
        assert done.returncode == 0, done.stderr
        cluster = local.current()
        assert cluster is not None
        yield cluster
    finally:
        local.down()


@pytest.fixture
def gcs(up: LocalCluster) -> Iterator[Gcs]:
    auth.apply(auth.token_environment())
    yield Gcs(up.address)
    auth.apply({})


@pytest.fixture
def joined(up: LocalCluster) -> Iterator[LocalCluster]:
    connect(up.address)
    yield up
    disconnect()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def refused(message: str, within_s: float = 15) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(ClusterError, match=message) as caught:
        yield
    assert time.monotonic() - began < within_s
    assert caught.value.exit_code == 2
    assert not ray.is_initialized()


def of_node(up: LocalCluster, name: str) -> local.LocalNode:
    return next(node for node in up.nodes if node.name == name)


# ── up ──
def test_up_starts_a_head_and_worker_nodes_as_separate_ray_nodes(up: LocalCluster, gcs: Gcs) -> None:
    nodes = [node for node in gcs.nodes() if node.alive]
    assert [(node.name, node.is_head, node.resources.get("CPU", 0)) for node in nodes] == [
        ("head", True, 0), ("worker-1", False, 1), ("worker-2", False, 1)]
    raylets = {psutil.Process(node.pids["raylet"]).name() for node in up.nodes}
    assert raylets == {"raylet"}
    assert len({node.pids["raylet"] for node in up.nodes}) == 3


def test_everything_listens_on_loopback_only(up: LocalCluster) -> None:
    listening = [
        (process.name(), connection.laddr.ip)
        for process in up.processes() for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 10
    assert {ip for _, ip in listening} <= LOOPBACK, listening


def test_the_token_is_for_its_owner_only(up: LocalCluster, home: Path) -> None:
    token = auth.token_file()
    assert (stat.S_IMODE(token.stat().st_mode), stat.S_IMODE((home / "cluster.json").stat().st_mode)) == (0o600, 0o600)
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    assert token.read_text() not in (home / "cluster.json").read_text()
    assert not any(token.read_text() in " ".join(process.cmdline()) for process in up.processes())


def test_the_dashboard_wants_the_token(up: LocalCluster) -> None:
    def status_of(**headers: str) -> int:
        request = urllib.request.Request(f"{up.dashboard_url}/api/jobs/", headers=headers)
        try:
            return urllib.request.urlopen(request, timeout=10).status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert status_of() == 401
    assert status_of(Authorization="Bearer " + "0" * 64) == 403
    assert status_of(Authorization=f"Bearer {auth.token_file().read_text()}") == 200


def test_a_second_up_is_refused_with_a_remedy(up: LocalCluster) -> None:
    done = cli("up")
    assert done.returncode == 2
    assert done.stderr.strip() == (f"a local cluster is up already, at {up.address}: use it, or end it first with "
                                   "`python -m cluster down`")
    assert local.current() == up


def test_a_wrong_flag_is_refused(home: Path) -> None:
    done = cli("up", "--nodes", "-1")
    assert done.returncode == 2
    assert "'-1' is no whole number" in done.stderr


# ── jobs ──
@pytest.fixture(scope="module")
def job_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that says where it runs, then leaves a daemon behind, and ends or stays."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(f"""
import json, os, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from cluster.connect import connect
info = connect()
daemon = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print("said", json.dumps({{"python": sys.executable, "address": info.address, "started": info.started,
                          "pid": os.getpid(),
      "daemon": daemon.pid, "stop": os.environ["RAY_JOB_STOP_WAIT_TIME_S"]}}), flush=True)
time.sleep(float(sys.argv[1]))
print("the last line", flush=True)
""")
    return folder


@pytest.fixture(scope="module")
def running_job(up: LocalCluster, job_folder: Path) -> Iterator[dict[str, object]]:
    """Submitted with what `env` prints, and still running."""
    exports = dict(re.findall(r"^export (\w+)=(\S+)$", cli("env").stdout, re.MULTILINE))
    submit = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "job", "submit", "--working-dir", str(job_folder), "--", "python",
         "job.py", "300"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=job_folder,
        env={**os.environ, **exports, "PYTHONUNBUFFERED": "1"})  # else it keeps the line to itself
    assert submit.stdout is not None
    heard = ""
    try:
        for line in submit.stdout:
            heard += line
            if line.startswith("said "):
                yield json.loads(line[5:])
                break
        else:
            pytest.fail(f"the job did not come to speak:\n{heard}")
    finally:
        submit.kill()
        submit.wait()
        submit.stdout.close()


def test_a_submitted_job_runs_by_this_python_and_joins_its_cluster(up: LocalCluster,
                                                                   running_job: dict[str, object]) -> None:
    assert running_job["python"] == sys.executable
    assert (running_job["address"], running_job["started"]) == (up.address, False)
    assert running_job["stop"] == "60"


# ── status ──
def test_status_shows_nodes_versions_and_running_jobs(up: LocalCluster, running_job: dict[str, object]) -> None:
    done = cli("status")
    assert done.returncode == 0, done.stdout + done.stderr
    for text in (up.address, up.dashboard_url, f"Ray {ray.__version__}", "Python 3.", "worker-2", "3 alive", "of 2",
                 "python job.py 300", "raysubmit_", "no problems"):
        assert text in done.stdout


def test_status_of_no_cluster_is_one_message(tmp_path: Path) -> None:
    done = cli("status", TRAINYARD_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.strip() == ("there is no local cluster, and RAY_ADDRESS is not set: start one with `python -m "
                                   "cluster up`, or give --address")


def test_status_of_a_dead_address_is_one_message(tmp_path: Path) -> None:
    done = cli("status", "--address", "127.0.0.1:1", TRAINYARD_HOME=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no Ray cluster answers at 127.0.0.1:1 (Connection refused)" in done.stderr


# ── connect ──
def test_connect_takes_an_address_before_ray_address(up: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    try:
        info = connect(up.address)
        assert (info.address, info.started, info.num_nodes) == (up.address, False, 3)
        assert info.resources["CPU"] == 2
        assert connect() == info  # a second time is no error
    finally:
        disconnect()


def test_connect_takes_ray_address(up: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (up.address, "auto"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        try:
            assert connect().address == up.address
        finally:
            disconnect()
        assert auth.current() == {}


def test_what_workers_print_and_ray_says_stays_out_of_the_terminal(joined: LocalCluster,
                                                                   capfd: pytest.CaptureFixture[str]) -> None:
    @ray.remote(num_cpus=0)
    def speak() -> None:
        print("a worker speaks")
        os._exit(1)

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(speak.options(max_retries=0).remote())
    time.sleep(1)
    heard = capfd.readouterr()
    assert (heard.out, heard.err) == ("", "")


def test_a_wrong_token_is_found_out(up: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        auth.apply(auth.current())
        with refused(f"the Ray cluster at {up.address} refuses this token: set RAY_AUTH_MODE=token and "
                     "RAY_AUTH_TOKEN_PATH"):
            connect(up.address)
        monkeypatch.undo()


@pytest.mark.parametrize(("address", "message"), [
    ("127.0.0.1:1",
     r"no Ray cluster answers at 127.0.0.1:1 \(Connection refused\): start one with `python -m cluster up`"),
    ("no-such-host.invalid:6379", "no Ray cluster answers at no-such-host.invalid:6379"),
    ("http://127.0.0.1:8265", "http:// is for `ray job submit`"),
    ("ray://127.0.0.1:10001", "ray:// clients are not supported"),
    ("somewhere", "not HOST:PORT"),
])
def test_a_dead_or_wrong_address_is_found_out(home: Path, address: str, message: str) -> None:
    with refused(message):
        connect(address)


def test_a_port_where_nobody_answers_is_found_out(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, refused("does not answer"):
        connect(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_cluster_whose_control_store_hangs_is_found_out(up: LocalCluster) -> None:
    with stopped(of_node(up, "head").pids["gcs_server"]):
        with refused(r"does not answer \(its port is open"):
            connect(up.address)
        assert cli("status", timeout=60).returncode == 2


def test_a_cluster_whose_node_here_hangs_is_found_out(up: LocalCluster) -> None:
    """The head, which is the one that a driver works through."""
    with stopped(of_node(up, "head").pids["raylet"]), refused("node head of the Ray cluster at .* does not answer"):
        connect(up.address)


def test_status_names_a_node_that_hangs(up: LocalCluster) -> None:
    with stopped(of_node(up, "worker-1").pids["raylet"]):
        done = cli("status")
    assert done.returncode == 1
    assert "problem: node worker-1 (127.0.0.1) does not answer, though the cluster takes it for alive" in done.stdout


def test_another_version_of_ray_is_refused(up: LocalCluster, gcs: Gcs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(probe(up.address)) == 3
    monkeypatch.setattr(ray, "__version__", "1.2.3")
    with pytest.raises(ClusterError,
                       match=r"runs ray 2\..*, this environment ray 1\.2\.3: install the same version here"):
        probe(up.address)


def local_driver(*lines: str) -> subprocess.Popen[str]:
    """A process that starts a cluster of its own, prints where it is, and then does what the lines say."""
    code = "\n".join(["from cluster.connect import connect, disconnect", "info = connect(num_cpus=2)",
                      "import json, os, ray, sys, time, dataclasses",
                      "print(json.dumps(dataclasses.asdict(info)), flush=True)", *lines])
    return subprocess.Popen([sys.executable, "-W", "error", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_without_an_address_a_guarded_local_cluster_starts_and_ends_with_the_process(up: LocalCluster) -> None:
    """Though another cluster of this user is up: it is joined only when it is asked for."""
    driver = local_driver("folder = ray.get(ray.remote(lambda: os.getcwd()).remote())",
                          "print(folder, os.environ['RAY_AUTH_MODE'], flush=True)", "input()")
    assert driver.stdout is not None and driver.stderr is not None
    info = json.loads(driver.stdout.readline())
    assert info["started"] is True
    assert info["address"] != up.address
    assert (info["num_nodes"], info["resources"]["CPU"]) == (1, 2)
    keeper = next(p for p in psutil.Process(driver.pid).children() if "cluster.local.node" in p.cmdline())
    everything = [keeper, *keeper.children(recursive=True)]
    folder = json.loads(keeper.cmdline()[-1])["folder"]
    ips = {c.laddr.ip for p in everything for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert ips <= LOOPBACK
    with pytest.raises(ClusterError, match="refuses this token"):
        probe(info["address"])
    assert driver.stdout.readline().split() == [str(ROOT), "token"]
    out, err = driver.communicate("\n", timeout=60)
    assert (driver.returncode, out, err) == (0, "", "")
    assert not any(process.is_running() for process in everything)
    assert not Path(folder).exists()


def test_a_local_cluster_ends_when_its_process_is_killed(home: Path) -> None:
    driver = local_driver("time.sleep(100)")
    assert driver.stdout is not None
    driver.stdout.readline()
    keeper = next(p for p in psutil.Process(driver.pid).children() if "cluster.local.node" in p.cmdline())
    everything = [keeper, *keeper.children(recursive=True)]
    folder = Path(json.loads(keeper.cmdline()[-1])["folder"])
    driver.kill()
    driver.communicate()
    psutil.wait_procs(everything, timeout=60)
    assert not any(process.is_running() for process in everything)
    assert not folder.exists()


# ── processes on a node ──
def test_a_stopped_worker_shows_its_stack_and_can_be_killed(joined: LocalCluster) -> None:
    @ray.remote(num_cpus=0)
    class Worker:
        def where(self) -> tuple[int, float]:
            return os.getpid(), time.time()

        def hang_in_this_function(self) -> None:
            time.sleep(1000)

    node = of_node(joined, "worker-2").node_id
    worker = Worker.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
    pid, then = ray.get(worker.where.remote())
    worker.hang_in_this_function.remote()
    until(lambda: "hang_in_this_function" in dump_stack(pid, node), 60)
    os.kill(pid, signal.SIGSTOP)
    stack = dump_stack(pid, node)
    assert "hang_in_this_function" in stack
    assert dump_stack(pid, None).splitlines()[-1] == stack.splitlines()[-1]
    assert not kill(pid, node, then - 1000), "a process that began later is another one"
    assert psutil.pid_exists(pid)
    assert kill(pid, node, then)
    psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], timeout=60)
    assert not kill(pid, node, then)
    assert f"py-spy cannot read process {pid}" in dump_stack(pid, node)


def test_a_node_that_is_not_there_is_said_not_raised(joined: LocalCluster) -> None:
    nowhere = "0f" * 28
    assert dump_stack(1, nowhere).startswith("node 0f0f0f0f0f0f did not do dump_stack:")
    assert kill(1, nowhere, time.time()) is False


# ── submit and watch ──
TINY = ["--run.tracking-uri", "none", "--model.hidden", "16", "--train.global-batch-size", "60",
        "--eval.bootstrap-samples", "100",
        "--eval.robustness-rows", "0"]


def test_a_submitted_job_is_followed_to_its_end_and_its_code(up: LocalCluster, tmp_path: Path) -> None:
    done = cli("submit", "mlp", "--", *TINY, "--run.storage", str(tmp_path), "--run.name", "tiny", "--train.max-steps",
               "5",
               timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("submitted raysubmit_")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"artifact: {tmp_path}/tiny/artifact"
    assert lines.count(lines[-1]) == 1


def test_a_refused_job_ends_with_2(up: LocalCluster, tmp_path: Path) -> None:
    done = cli("submit", "mlp", "--", *TINY, "--run.storage", str(tmp_path / "s"), "--run.workers", "9",
               "--train.global-batch-size", "90")
    assert done.returncode == 2, done.stdout + done.stderr
    assert ("error: needs 9 workers with 1 CPU each, the cluster has room for 2 and cannot grow: pass --run.workers 2"
            in done.stdout)
    assert not (tmp_path / "s").exists()


def test_what_was_refused_is_refused_at_once_when_it_is_submitted_again(gcs: Gcs, up: LocalCluster,
                                                                        tmp_path: Path) -> None:
    """As KubeRay does: the same command and metadata, under another submission id."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(up.dashboard_url)
    command = shlex.join(["python", "-m", "jobs.mlp", *TINY, "--run.storage", str(tmp_path / "s"), "--data.uri",
                          str(tmp_path / "none")])
    took: list[float] = []
    for _ in range(2):
        job = client.submit_job(entrypoint=command, runtime_env={"working_dir": str(ROOT)},
                                metadata={"trainyard_submission": "ab12"})
        until(lambda: client.get_job_info(job).status.is_terminal(), 60)  # noqa: B023
        info = client.get_job_info(job)
        assert info.driver_exit_code == 2, info.message
        took.append((info.end_time - info.start_time) / 1000)
    print(f"refused after {took[0]:.1f} s, and again after {took[1]:.1f} s")
    assert "nothing was tried again: submit it anew" in client.get_job_logs(job)
    assert took[1] < 5 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), took


def test_watch_shows_a_run_and_ctrl_c_ends_the_following_only(up: LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    submit = subprocess.Popen(
        [sys.executable, "-m", "cluster", "submit", "mlp", "--submission-id", "long", "--", *TINY, "--run.storage",
         str(tmp_path),
         "--run.name", "long", "--train.epochs", "100000"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT)
    try:
        until(lambda: (folder / "progress.json").exists()
              and json.loads((folder / "progress.json").read_text())["highest_step"],
              90)
        until(lambda: re.search(r"long .*mlp .*1 ", cli("watch", "--once").stdout), 60)
        page = cli("watch", "--once")
        assert page.returncode == 0, page.stdout + page.stderr
        for words in (up.address, "no alerts", "runs", "samples/s", "goodput", "worker-2", "no endpoint"):
            assert words in page.stdout, page.stdout
        submit.send_signal(signal.SIGINT)
        out, _ = submit.communicate(timeout=60)
        assert submit.returncode == 130
        assert ("not followed any more; the job goes on\n  follow it:  ray job logs --follow long\n  stop it:    ray "
                "job stop long"
                in out)
        assert "jobs.mlp" in cli("status").stdout
    finally:
        submit.kill()
        submit.communicate()
        exports = dict(re.findall(r"^export (\w+)=(\S+)$", cli("env").stdout, re.MULTILINE))
        subprocess.run([Path(sys.executable).with_name("ray"), "job", "stop", "long"], env={**os.environ, **exports},
                       timeout=60,
                       capture_output=True, check=True)
    assert json.loads((folder / "result.json").read_text())["exit_code"] == 3


def test_submitting_to_no_cluster_is_one_message(tmp_path: Path) -> None:
    done = cli("submit", "mlp", TRAINYARD_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("there is no cluster to submit to: start one with `python -m cluster up`, set "
                                  "RAY_API_SERVER_ADDRESS")
    done = cli("submit", "mlp", "--address", "http://127.0.0.1:1", TRAINYARD_HOME=str(tmp_path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no Ray dashboard answers at http://127.0.0.1:1" in done.stderr


def test_submitting_with_another_token_is_one_message(up: LocalCluster, tmp_path: Path) -> None:
    done = cli("submit", "mlp", "--address", up.dashboard_url, TRAINYARD_HOME=str(tmp_path), RAY_AUTH_MODE="token",
               RAY_AUTH_TOKEN="f" * 64)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "does not take jobs from here" in done.stderr and "f" * 64 not in done.stderr


def until(condition: Callable[[], object], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


# ── nodes come and go ──
@pytest.mark.in_order
def test_a_node_can_be_added_and_switched_off_and_status_says_so(up: LocalCluster, gcs: Gcs) -> None:
    added = add_node(3)
    assert added.name == "worker-3"
    assert {n.name: n.resources.get("CPU", 0) for n in gcs.nodes() if n.alive}["worker-3"] == 3
    everything = [psutil.Process(added.process.pid), *psutil.Process(added.process.pid).children(recursive=True)]
    others = [psutil.Process(node.process.pid) for node in up.nodes]
    remove_node("worker-3")
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in everything)
    assert all(process.is_running() for process in others)
    until(lambda: not any(node.name == "worker-3" and node.alive for node in gcs.nodes()), 60)
    done = cli("status")
    assert done.returncode == 1
    assert "problem: node worker-3 (127.0.0.1) is dead: start it again, or ignore it if it was removed" in done.stdout
    again = add_node(1)
    assert (again.name, again.node_id != added.node_id) == ("worker-3", True)
    assert again.node_id in {node.node_id for node in gcs.nodes() if node.alive}
    remove_node("worker-3")


# ── down; no test below uses this cluster ──
@pytest.mark.in_order
def test_down_ends_what_up_started_and_nothing_else(up: LocalCluster, running_job: dict[str, object],
                                                    home: Path) -> None:
    log = next(Path(up.folder).rglob("gcs_server.out"))
    with log.open() as file:
        bystander = subprocess.Popen(["sleep", "1000"], stdin=file, start_new_session=True)  # holds a file of it open
    mine = [psutil.Process(int(str(running_job[name]))) for name in ("pid", "daemon")]
    everything = [*up.processes(), *mine]
    assert {process.pid for process in mine} <= {process.pid
                                                 for process in up.processes()}, "a job's daemon belongs to it too"
    os.kill(of_node(up, "worker-1").process.pid, signal.SIGKILL)  # what it kept is now nobody's
    try:
        done = cli("down")
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"cluster down: \d+ processes ended\n", done.stdout)
        assert [p for p in everything if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        assert up.processes() == []
        assert bystander.poll() is None
        assert not Path(up.folder).exists()
        assert local.current() is None
        assert cli("down").stdout == "there is no local cluster to end\n"
    finally:
        bystander.kill()
        bystander.wait()
