"""The user without capabilities that root's tests run some commands as."""

import os
import subprocess
import sys

import pytest

from tests import unprivileged


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_root_finds_a_way_to_run_a_command_without_capabilities_in_a_folder_that_is_its_users() -> None:
    assert unprivileged.way() is not None, "make demo and the README's commands would not be tried as an ordinary user"
    with unprivileged.user() as user:
        command = user.runs(sys.executable, "-c", "import os; os.mkdir('mine'); os.setpriority(os.PRIO_PROCESS, 0, -1)")
        done = subprocess.run(command, cwd=user.folder, capture_output=True, text=True, check=False)
        assert (user.folder / "mine").is_dir()
    assert "PermissionError" in done.stderr
    unprivileged.require_none(done.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="root's own capabilities")
def test_root_as_it_is_has_capabilities() -> None:
    assert not unprivileged.is_one(())
    with pytest.raises(AssertionError):
        unprivileged.require_none(subprocess.run(["grep", "^CapEff:", "/proc/self/status"], capture_output=True,
                                                 text=True,
                                                 check=True).stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="root's ways of having none")
def test_the_last_way_needs_neither_a_readable_home_nor_namespaces() -> None:
    assert unprivileged.is_one(unprivileged.WAYS["root without capabilities"])
