"""Where Trainyard keeps what belongs to this user on this machine, and the token that guards this user's Ray clusters.

Everything lies in `~/.trainyard` (or $TRAINYARD_HOME), which only its owner may read. Ray's own default token file is
readable by everyone, so it is not used: each Ray process is told to use ours through RAY_AUTH_TOKEN_PATH.
"""
# pyright: reportMissingTypeStubs=false

import getpass
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cluster.core.errors import ClusterError, ConfigError
from cluster.core.ray_internals import finds_token, read_token_settings_again

AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

KEEP_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray replaces 127.0.0.1 by the machine's outer address wherever an address is given to it, and then does not find, or
opens to the network, what listens on loopback. This variable, meant for other systems, turns just that off."""


def expanded(path: str) -> Path:
    """The path with `~` replaced by the home folder; the project's only way to do so.
    Raises: ConfigError if nobody knows it."""
    if (why := no_home(path)) is not None:
        raise ConfigError(f"{path}: {why}, or give an absolute path")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - as in `no_home`


def no_home(path: str = "~") -> str | None:
    """Why nobody knows the home folder that a path begins with, and the remedy; None if it is known, or none is meant.

    In a pod whose user id is in no /etc/passwd, and without HOME, Python leaves `~` as it is: what was meant for the
    home folder would go into a folder of that name below the current one.
    """
    found = os.path.expanduser(path)  # noqa: PTH111 - what pathlib raises is no sentence
    if not found.startswith("~"):
        return None
    if (whose := found.partition("/")[0]) != "~":
        return f"there is no user {whose[1:]} with a home folder: give another name"
    return (f"there is no home folder (HOME is not set, and user {os.getuid()} is not in /etc/passwd): set HOME to a "
            "folder that this user can write")


def user_name() -> str:
    """Of whoever runs this process. A container's user may have none but a number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def require_home() -> None:
    """Raises: ConfigError without a home folder, which Ray Train asks for when it is imported, in workers too."""
    if (why := no_home()) is not None:
        raise ConfigError(f"Ray cannot be used here: {why}")


def home_folder() -> Path:
    """Made if it is not there; only its owner may enter it: whoever may write there could put a token of his own.

    Raises: ClusterError if it is another user's, or others may enter it and that cannot be mended;
    ConfigError for no home.
    """
    folder = expanded(os.environ.get("TRAINYARD_HOME") or "~/.trainyard").absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise PermissionError(0, f"it is user {found.st_uid}'s")
        if found.st_mode & stat.S_ISVTX:
            raise PermissionError(0, "it is shared by all users, as /tmp is")
        if found.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(f"{folder} cannot be this user's folder for tokens ({error.strerror}): set TRAINYARD_HOME "
                           "to a folder of your own") from error
    return folder


def token_file() -> Path:
    """The file that holds this user's token."""
    return secret_file("auth_token")


def secret_file(name: str) -> Path:
    """A file of this user's with 32 random bytes in hex, mode 0600; made at the first call."""
    path = home_folder() / name
    if not path.exists():
        write_private(path.with_suffix(f".{os.getpid()}"), secrets.token_hex(32))
        try:
            os.link(path.with_suffix(f".{os.getpid()}"), path)
        except FileExistsError:  # another process was first: its secret holds
            pass
        finally:
            path.with_suffix(f".{os.getpid()}").unlink()
    path.chmod(0o600)
    return path


def token_environment() -> dict[str, str]:
    """What a process needs in its environment to serve, join or submit to a cluster guarded by this user's token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file())}


def own_environment() -> dict[str, str]:
    """The authentication variables of a cluster of this process's own: what is set, if a mode is;
    else this user's token.

    A token without a mode, as a shell may have it for elsewhere, would leave the cluster open: Ray's mode is then
    `disabled`. Raises: ClusterError for a mode that Ray does not know, for the same reason.
    """
    if (why := unknown_mode()) is not None:
        raise ClusterError(why)
    return current() if "RAY_AUTH_MODE" in os.environ else token_environment()


def unknown_mode() -> str | None:
    """What is wrong with RAY_AUTH_MODE; None if nothing is."""
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    if mode.lower() in ("token", "disabled"):
        return None
    return f"RAY_AUTH_MODE is {mode!r}, which Ray takes for `disabled`: set it to token or disabled, or unset it"


def write_private(path: Path, text: str) -> None:
    """Writes a file that never was readable by others, whole or not at all."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    partial.replace(path)


def apply(environment: Mapping[str, str]) -> None:
    """Makes these the process's authentication variables, all others unset, also for a Ray that is imported already."""
    for name in AUTH_VARIABLES:
        os.environ.pop(name, None)
    os.environ.update(environment)
    read_token_settings_again()


def current() -> dict[str, str]:
    """The authentication variables that are set now."""
    return {name: os.environ[name] for name in AUTH_VARIABLES if name in os.environ}


def has_token() -> bool:
    """Whether Ray finds a token in the environment or in its default file, be authentication on or off."""
    from ray.exceptions import AuthenticationError

    try:
        return finds_token()
    except AuthenticationError:  # RAY_AUTH_TOKEN_PATH names a file that is not there
        return False
