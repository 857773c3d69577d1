"""Images by URL, from public addresses only.

A server that fetches must not be a way into its own network. What a name stands for may change
between one look and the next, and a redirect may lead anywhere: so every connection goes to an
address that was looked at. Knows nothing about requests.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
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


def is_public(address: str) -> bool:
    """Whether an IP address, with or without a zone, is one of the whole internet's."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


class _Checked(http.client.HTTPConnection):
    def connect(self) -> None:
        """To an address that was looked at, not to a name that may mean another a moment later."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        if not all(map(is_public, addresses)):
            raise NotPublic
        fault: OSError | None = None
        for address in addresses:
            try:
                self.sock = socket.create_connection((address, self.port), self.timeout)
                return
            except OSError as error:
                fault = error
        raise fault or OSError(f"{self.host} has no address")


class _CheckedTls(http.client.HTTPSConnection, _Checked):
    """Its own `connect` begins with `_Checked`'s, and asks for the name's certificate."""


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
