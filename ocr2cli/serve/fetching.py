"""Images by URL, from public addresses only.

A server that fetches must not be a way into its own network. What a name stands for may change
between a look and the next, and a redirect may lead anywhere: so the address that each connection
really has is looked at before anything is asked of it. Knows nothing about requests.
"""

from __future__ import annotations

import http.client
import ipaddress
import time
import urllib.request
from typing import Any

_CONNECT_S, _WHOLE_S = 20.0, 60.0  # for one wait; for all of it
_PIECE_BYTES = 1 << 16

# What may go wrong: a URL that is none, a host that is none or does not answer, a broken answer.
FETCH_ERRORS = (OSError, ValueError, http.client.HTTPException)


class NotPublic(Exception):
    """The URL, or what it redirects to, leads to an address that is not a public one."""


class TooLarge(Exception):
    """The answer is longer than asked for."""


def download(url: str, *, max_bytes: int) -> bytes:
    """The bytes behind an http(s) URL, asked for directly, by no proxy.

    Raises: NotPublic, TooLarge, one of FETCH_ERRORS.
    """
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    until = time.monotonic() + _WHOLE_S
    pieces, size = [], 0
    with opener.open(url, timeout=_CONNECT_S) as answer:
        while piece := answer.read1(_PIECE_BYTES):
            pieces.append(piece)
            size += len(piece)
            if size > max_bytes:
                raise TooLarge
            if time.monotonic() > until:
                raise TimeoutError(f"it took more than {_WHOLE_S:.0f} s")
    return b"".join(pieces)


class _Checked(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        address = self.sock.getpeername()[0].partition("%")[0]
        if not ipaddress.ip_address(address).is_global:
            self.close()
            raise NotPublic


class _CheckedTls(http.client.HTTPSConnection, _Checked):
    """Looks at the address as well: HTTPSConnection.connect begins with _Checked's."""


class _PublicHttp(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Checked, request)


class _PublicHttps(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_CheckedTls, request)


# No others: a redirect to ftp would go past the look at the address.
_HANDLERS: tuple[type[urllib.request.BaseHandler], ...] = (
    _PublicHttp,
    _PublicHttps,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
)
