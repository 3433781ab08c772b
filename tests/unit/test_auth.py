"""cluster/core/auth.py and what uses it: which token a process serves and sends, and who may read it."""

import os
import re
import stat
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from cluster import commands, connect
from cluster.core import auth
from cluster.core.control_store import Gcs, TokenError
from cluster.core.errors import ClusterError, ConfigError
from cluster.core.shadows import PACKAGES
from cluster.core.storage import Store
from cluster.local import cluster as local
from cluster.local.processes import Process
from jobs.common.data.cache import BlockCache
from jobs.common.runs.run import main
from jobs.mlp import demo
from jobs.mlp.job import JOB


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of its own, and no authentication variable set."""
    for name in ("RAY_ADDRESS", *auth.AUTH_VARIABLES):
        monkeypatch.setenv(name, "x")  # so that what a test sets is removed after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_an_own_cluster_is_guarded_though_a_token_without_a_mode_is_set(variable: str,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def look(num_cpus: int | None) -> None:
        seen.append(auth.current())
        raise ClusterError("seen")

    monkeypatch.setattr(local, "bound_head", look)  # a real one takes seconds
    monkeypatch.setenv(variable, "/dev/null")
    with pytest.raises(ClusterError, match="seen"):
        connect.connect("local")
    assert seen == [auth.token_environment()]
    assert auth.current() == {variable: "/dev/null"}, "what was set is set again"


def test_a_mode_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth.own_environment() == {"RAY_AUTH_MODE": "disabled"}


CLUSTER = local.LocalCluster(cluster_id="c" * 32, address="127.0.0.1:1", folder="/tmp/none", nodes=(
    local.LocalNode(name="head", node_id="0f", num_cpus=1, process=Process(1, 0.0), pids={},
                    dashboard_url="http://127.0.0.1:2"),))


def test_a_token_of_the_shell_does_not_beat_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    script = "\n".join([*commands.exports(CLUSTER), 'echo "$RAY_AUTH_MODE ${RAY_AUTH_TOKEN-none}"'])
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == "token none\n"
    assert demo.environment_for(CLUSTER).items() >= CLUSTER.environment().items()
    assert "RAY_AUTH_TOKEN" not in demo.environment_for(CLUSTER)


def test_a_refused_token_names_the_variable_that_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal() -> str:
        with refusing_server() as address, pytest.raises(TokenError, match="refuses this token") as caught:
            Gcs(address).ray_version()
        return str(caught.value)

    assert "unset RAY_AUTH_TOKEN" not in refusal()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert "and unset RAY_AUTH_TOKEN" in refusal()


@pytest.mark.parametrize(("settings", "message"), [
    ({}, "RAY_AUTH_MODE is token, but there is no token: set RAY_AUTH_TOKEN_PATH"),
    ({"RAY_AUTH_TOKEN": ""}, r"there is no token \(RAY_AUTH_TOKEN is empty\): set"),
    ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, r"\(RAY_AUTH_TOKEN_PATH names /nowhere, which is not there, or empty\)"),
    ({"RAY_AUTH_TOKEN_PATH": "/dev/null"}, r"\(RAY_AUTH_TOKEN_PATH names /dev/null, which is not there, or empty\)"),
    ({"RAY_AUTH_MODE": "tokn"}, "RAY_AUTH_MODE is 'tokn', which Ray takes for `disabled`: set it to token or disabled"),
])
def test_a_token_that_is_not_there_is_one_message(
        settings: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray's default token file would be
    with refusing_server() as address, ray_with({"RAY_AUTH_MODE": "token", **settings}):
        with pytest.raises(TokenError, match=message):
            connect.probe(address)
        with pytest.raises(TokenError, match=message):
            connect.connect(address)


def test_a_token_file_that_is_not_there_without_a_mode_is_a_refused_token() -> None:
    with refusing_server() as address, ray_with({"RAY_AUTH_TOKEN_PATH": "/nowhere"}), \
            pytest.raises(TokenError, match="refuses this token"):
        connect.connect(address)


def test_an_unknown_mode_does_not_open_the_own_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "tokn")
    monkeypatch.setattr(local, "bound_head", lambda _: pytest.fail("it is started"))
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is 'tokn'"):
        connect.connect("local")


@contextmanager
def ray_with(settings: dict[str, str]) -> Generator[None]:
    auth.apply(settings)
    try:
        yield
    finally:
        auth.apply({})


@contextmanager
def refusing_server() -> Generator[str]:
    """A control store to which every token is a wrong one."""
    class Refuse(grpc.ServerInterceptor):
        def intercept_service(self, continuation: object, handler_call_details: object) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "no"))

    server = grpc.server(ThreadPoolExecutor(1), interceptors=[Refuse()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


# ── the user's folder ──
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o770])
def test_a_folder_that_others_may_enter_is_closed(mode: int, home: Path) -> None:
    home.mkdir()
    home.chmod(mode)
    assert auth.token_file().parent == home
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_folder_that_is_no_folder_or_another_users_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.write_text("")
    with pytest.raises(ClusterError, match=r"\(File exists\): set TRAINYARD_HOME to a folder of your own"):
        auth.home_folder()
    home.unlink()
    home.mkdir()
    home.chmod(0o1777)
    with pytest.raises(ClusterError, match="shared by all users"):
        auth.home_folder()
    assert stat.S_IMODE(home.stat().st_mode) == 0o1777
    home.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)  # only root could give the folder away
    with pytest.raises(ClusterError, match=rf"\(it is user {os.getuid()}'s\): set TRAINYARD_HOME"):
        auth.home_folder()


# ── the home folder ──
NO_HOME = r"HOME is not set, and user 54321 is not in /etc/passwd\): set HOME to a folder that this user can write"


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whom nobody knows, as in a pod with a user id of its own, in an empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    return tmp_path / "here"


def test_without_a_home_folder_none_is_made_of_the_tilde(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRAINYARD_HOME")
    for use in (lambda: Store.open("~/x"), auth.home_folder, lambda: BlockCache.open("~/cache", 1), demo.main, local.up,
                lambda: connect.connect("127.0.0.1:1")):
        with pytest.raises(ConfigError, match=NO_HOME):
            use()
    assert list(homeless.iterdir()) == []


@pytest.mark.parametrize(("flags", "says"), [
    ([], "~/trainyard: there is no home folder"),
    (["--run.storage", "st"], "MLflow, which keeps the registry .*mlflow.db, cannot be imported"),
    (["--run.storage", "st", "--run.tracking-uri", "none", "--run.engine", "ray"], "Ray cannot be used here"),
])
def test_a_job_without_a_home_folder_ends_before_it_begins(
    flags: list[str], says: str, homeless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(JOB, ["--run.engine", "local", "--run.name", "r", *flags]) == 2
    assert re.match(f"error: {says}.*{NO_HOME}", capsys.readouterr().err)
    assert list(homeless.iterdir()) == []


def test_the_home_folder_of_an_unknown_user_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no user nobody-here with a home folder: give another name"):
        auth.expanded("~nobody-here/x")


def test_only_one_function_looks_for_the_home_folder() -> None:
    root = Path(auth.__file__).parents[2]
    found = [path.relative_to(root) for part in PACKAGES for path in (root / part).rglob("*.py")
             if re.search(r"expanduser|Path\.home\(|getpass|import pwd", path.read_text())]
    assert found == [Path("cluster/core/auth.py")]
