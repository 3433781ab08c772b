"""cluster/auth.py and what uses it: which token a process serves and sends, and who may read it."""

from pathlib import Path

import pytest

from cluster import auth, connect, local
from cluster.errors import ClusterError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder of its own, and no authentication variable set."""
    for name in ("RAY_ADDRESS", *auth.AUTH_VARIABLES):
        monkeypatch.setenv(name, "x")  # so that what a test sets is removed after it
        monkeypatch.delenv(name)
    monkeypatch.setenv("TRAINYARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("variable", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_an_own_cluster_is_guarded_though_a_token_without_a_mode_is_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
