"""Certificates for an endpoint: what is wrong with them is said before anything starts."""

import datetime
import ipaddress
import socket
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cluster.core.errors import ClusterError, ConfigError
from serving.hardening import tls


def certificate(folder: Path, name: str = "one", password: bytes | None = None) -> tuple[Path, Path]:
    """One of loopback's, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1)).add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256()))
    cert_file, key_file = folder / f"{name}.pem", folder / f"{name}.key"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    key_file.chmod(0o600)
    return cert_file, key_file


def refused(cert: Path, key: Path) -> str:
    with pytest.raises(ConfigError) as error:
        tls.check(str(cert), str(key))
    return str(error.value)


def test_a_certificate_with_its_key_is_taken_and_none_at_all(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tls.check(str(cert), str(key))
    assert tls.wanted("cert.pem", "key.pem") == ("cert.pem", "key.pem")
    assert tls.wanted(None, None) is None
    for alone in (("cert.pem", None), (None, "key.pem")):
        with pytest.raises(ConfigError, match="go together"):
            tls.wanted(*alone)


def test_what_is_wrong_with_them_is_said(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    _, other = certificate(tmp_path, "other")
    _, locked = certificate(tmp_path, "locked", b"secret")
    assert refused(tmp_path / "none", key) == (
        f"--tls-cert {tmp_path}/none cannot be read (No such file or directory): pass a file in PEM")
    assert refused(cert, tmp_path / "none").startswith(f"--tls-key {tmp_path}/none cannot be read")
    assert refused(cert, other) == (
        f"--tls-key {other} is not the key of --tls-cert {cert}: pass the one that it was made with")
    for pair in ((key, key), (cert, cert), (cert, locked)):
        pair[1].chmod(0o600)
        assert "is no certificate, or --tls-key" in refused(*pair)
    key.chmod(0o604)
    assert refused(cert, key) == f"--tls-key {key} is open to every user of this machine: chmod 600 {key}"


def test_a_port_that_does_not_speak_tls_is_found_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        def hang_up() -> None:
            server.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(ClusterError, match="does not speak TLS"):
            tls.check_spoken("127.0.0.1", server.getsockname()[1])
        thread.join()
