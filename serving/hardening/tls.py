"""A certificate and its key for an endpoint: checked before anything starts,
and seen at work before it is announced."""

import socket
import ssl
from pathlib import Path

from cluster.core.errors import ClusterError, ConfigError


def wanted(cert: str | None, key: str | None) -> tuple[str, str] | None:
    """The files, if there are any. Raises: ConfigError if there is one of them alone."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise ConfigError("--tls-cert and --tls-key go together: pass both")
    return cert, key


def check(cert: str, key: str) -> None:
    """Raises: ConfigError if they are not files in PEM that belong together, or everyone may read the key."""
    for flag, file in (("--tls-cert", cert), ("--tls-key", key)):
        try:
            Path(file).read_bytes()
        except OSError as error:
            raise ConfigError(f"{flag} {file} cannot be read ({error.strerror}): pass a file in PEM") from error
    if Path(key).stat().st_mode & 0o007:
        raise ConfigError(f"--tls-key {key} is open to every user of this machine: chmod 600 {key}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key, lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        if getattr(error, "reason", None) == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--tls-key {key} is not the key of --tls-cert {cert}: pass the one that it was made "
                              "with") from error
        raise ConfigError(f"--tls-cert {cert} is no certificate, or --tls-key {key} no key without a password, in PEM "
                          f"({error})") from error


def check_spoken(host: str, port: int) -> None:
    """Raises: ClusterError if a port does not speak TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # only whether, not who: the certificate may be anyone's
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), timeout=10) as plain, context.wrap_socket(plain):
            return
    except OSError as error:
        raise ClusterError(f"port {port} does not speak TLS ({error}): a cluster that runs already is told of it by "
                           "its own environment, see serving/README.md") from error
