"""What to do about the certificate of an object store's endpoint that is not trusted."""

_TLS_REMEDIES = {
    "subject name": "the certificate is another host's: give the endpoint by a name that it has",
    "has expired": "have the endpoint's certificate renewed, or set this machine's clock",
    "curlCode: 77": "the file of certificates that SSL_CERT_FILE or tls_ca_file_path names cannot be read: check it, "
                    "on every node",
    "curlCode: 60": "nobody here trusts the endpoint's certificate: set SSL_CERT_FILE to a file in PEM with the one "
                    "that signed it, on every node, or end the URI with ?tls_ca_file_path=FILE (after other options: "
                    "&tls_ca_file_path=FILE); AWS_CA_BUNDLE is not read",
}
"""By what curl's message says, the first that fits."""


def tls_remedy(error: BaseException) -> str | None:
    """What to do about the certificate of an object store's endpoint, if an error is about that; else None."""
    return next((remedy for sign, remedy in _TLS_REMEDIES.items() if sign in str(error)), None)
