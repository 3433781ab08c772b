"""What web pages may do with an endpoint, by way of the browser of somebody who reaches it.

An endpoint without keys takes whoever reaches loopback for its owner, and every page that its owner's browser shows
reaches that: by the name of its own host, led to 127.0.0.1 (DNS rebinding), or by a form that it posts there blindly.
So it is asked by a name of loopback, and by pages of its own. With keys a page needs one.
`--cors-origin` lets pages of other hosts ask, and read the answers.
"""

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from cluster.core.errors import ConfigError
from serving.core.errors import ForbiddenError
from serving.core.settings import EndpointSettings

Headers = tuple[tuple[bytes, bytes], ...]
_ORIGIN = re.compile(r"https?://[a-z0-9.\-]+(:\d{1,5})?|https?://\[[0-9a-f:.]+\](:\d{1,5})?")
_ASKED = b"authorization, content-type, inference-header-content-length, x-request-id, x-request-timeout-seconds"
_READ = b"inference-header-content-length, retry-after, x-artifact-digest, x-model-version, x-request-id"
_AN_HOUR = b"3600"


def check(settings: EndpointSettings) -> None:
    """Raises: ConfigError for what no browser sends as an origin, or is not the beginning of a path."""
    for origin in settings.cors_origins:
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(f"--cors-origin {origin}: it must be what a browser sends, such as https://example.com "
                              "or http://localhost:3000, in lower case and without a path")
    if not re.fullmatch(r"(/[\w.~\-]+)*", settings.root_path):
        raise ConfigError(f"--root-path {settings.root_path}: it must begin with a slash and not end with one, such as "
                          "/models")


class Browsers:
    """The rules of one endpoint."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self._hosts = {settings.host, *(urlsplit(origin).hostname for origin in settings.cors_origins)}
        self._open = not settings.auth

    def admit(self, headers: Mapping[bytes, bytes]) -> None:
        """Raises: ForbiddenError for what only a page elsewhere would ask."""
        host, origin = headers.get(b"host"), headers.get(b"origin")
        if not self._open:
            return
        if host is not None and not self._is_ours(host):
            raise ForbiddenError("without keys an endpoint is asked as localhost or 127.0.0.1, not by another name: "
                                 "start it with --keys FILE, or pass --cors-origin with the address that browsers show")
        if origin is not None and origin not in self._origins and origin.partition(b"://")[2] != host:
            raise ForbiddenError("a page of another origin may not ask this endpoint: pass --cors-origin with its "
                                 "origin")

    def _is_ours(self, host: bytes) -> bool:
        try:
            name = urlsplit(b"//" + host).hostname
            found = (name or b"").decode()
            return found == "localhost" or found in self._hosts or ipaddress.ip_address(found).is_loopback
        except ValueError:
            return False

    def preflight(self, method: str, headers: Mapping[bytes, bytes]) -> Headers | None:
        """What a browser is told that asks whether a page may ask, which it does without a key;
        None: it does not ask that."""
        if method != "OPTIONS" or headers.get(b"origin") not in self._origins:
            return None
        return ((b"access-control-allow-methods", b"GET, POST"), (b"access-control-allow-headers", _ASKED),
                (b"access-control-max-age", _AN_HOUR))

    def said(self, headers: Mapping[bytes, bytes]) -> Headers:
        """What every answer says, so that a page may read it."""
        if not self._origins:
            return ()
        origin = headers.get(b"origin")
        if origin is None or origin not in self._origins:
            return ((b"vary", b"origin"),)
        return ((b"vary", b"origin"), (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", _READ))
