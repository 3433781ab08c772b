"""What a newcomer has: a fresh copy of the tree, an empty home folder, and a shell. Only the install is spared them."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEAD_PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"),
                           "http://127.0.0.1:9")
"""As behind a company's proxy: whoever asks it for what listens on this machine gets nothing."""
_NOT_THEIRS = ("VIRTUAL_ENV", "MAKE", "MFLAGS", "PYTHONPATH", "RAY_", "TRAINYARD_", "PYTEST_", "XDG_", "MLFLOW_",
               "AWS_")


def clone(target: Path) -> Path:
    """The tree as `git clone` would give it with the changes that are not committed,
    and the virtual environment of this one."""
    target.mkdir()
    for path in _files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    (target / ".venv").symlink_to(ROOT / ".venv")
    return target


def environment(home: Path) -> dict[str, str]:
    """This process's, less what a test runner or an activated environment added."""
    home.mkdir()
    spared = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_THEIRS)}
    path = [part for part in os.environ["PATH"].split(os.pathsep) if not part.startswith(f"{ROOT}/")]
    return {**spared, **DEAD_PROXY, "HOME": str(home), "PATH": os.pathsep.join(path)}


def _files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                text=True,
                                capture_output=True, check=True).stdout.split("\0")
        return [Path(name) for name in listed if name and (ROOT / name).is_file()]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git
        return [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()
                and not {".venv", ".git", "__pycache__"} & set(path.relative_to(ROOT).parts)]
