"""Images by URL, from public addresses only.

A server that fetches must not be a way into its own network. What a name stands for may change
between one look and the next, and a redirect may lead anywhere: so every connection goes to an
address that was looked at. Knows nothing about requests.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import threading
import time
import urllib.request
from functools import partial
from typing import Any

_CONNECT_S, _WHOLE_S = 20.0, 60.0  # for one wait; for all of it
_PIECE_BYTES = 1 << 16

# IPv6 addresses that stand for an IPv4 one, in their last bytes: mapped, and NAT64. Of the others
# those that are given out; 6to4 leads through a tunnel to any host.
_TRANSLATED = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("64:ff9b::/96"))
_UNICAST, _TUNNELLED = ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("2002::/16")

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
    pieces, size = [], 0
    with _Deadline(_WHOLE_S) as deadline:
        opener.add_handler(_PublicHttp(deadline))
        opener.add_handler(_PublicHttps(deadline))
        with opener.open(url, timeout=_CONNECT_S) as answer:
            while piece := answer.read1(_PIECE_BYTES):
                pieces.append(piece)
                size += len(piece)
                if size > max_bytes:
                    raise TooLarge
    return b"".join(pieces)


def is_public(address: str) -> bool:
    """Whether an IP address, with or without a zone, is one of the whole internet's."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _TRANSLATED):
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        elif ip not in _UNICAST or ip in _TUNNELLED:
            return False
    return ip.is_global and not ip.is_multicast


class _Deadline:
    """The time for one fetch. A host may send a byte now and then, in its certificate, its headers
    or its body: when the time is over, every connection ends wherever it is being read.

    Raises: TimeoutError, on leaving, when the time was over.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._connections: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._timer.cancel()
        self._timer.join()
        for connection in self._connections:
            connection.close()
        # What was cut may look broken, or whole.
        if error is None or isinstance(error, FETCH_ERRORS):
            self.left()

    def left(self) -> float:
        """Seconds, more than 0. Raises: TimeoutError."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took more than {self._seconds:.0f} s") from None
        return left

    def watch(self, connection: socket.socket) -> None:
        """Ends it in time. Raises: TimeoutError when it came too late."""
        # A duplicate stays one whatever TLS makes of the other.
        self._connections.append(connection.dup())
        self.left()

    def _cut(self) -> None:
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Checked(http.client.HTTPConnection):
    deadline: _Deadline  # of the fetch that it is made for

    def connect(self) -> None:
        """To an address that was looked at, not to a name that may mean another a moment later."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        addresses = [str(address[0]) for *_, address in found]
        if not all(map(is_public, addresses)):
            raise NotPublic
        fault: OSError | None = None
        for address in addresses:
            left = self.deadline.left()
            try:
                self.sock = socket.create_connection((address, self.port), min(_CONNECT_S, left))
            except OSError as error:
                fault = error
            else:
                self.sock.settimeout(_CONNECT_S)
                self.deadline.watch(self.sock)
                return
        raise fault or OSError(f"{self.host} has no address")


class _CheckedTls(http.client.HTTPSConnection, _Checked):
    """Its own `connect` begins with `_Checked`'s, and asks for the name's certificate."""


def _made(kind: type[_Checked], deadline: _Deadline, host: str, **how: Any) -> _Checked:
    connection = kind(host, **how)
    connection.deadline = deadline
    return connection


class _PublicHttp(urllib.request.HTTPHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._make = partial(_made, _Checked, deadline)

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._make, request)


class _PublicHttps(urllib.request.HTTPSHandler):
    def __init__(self, deadline: _Deadline) -> None:
        super().__init__()
        self._make = partial(_made, _CheckedTls, deadline)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(self._make, request)


# Besides these two no others: a redirect to ftp would go past the look at the address.
_HANDLERS: tuple[type[urllib.request.BaseHandler], ...] = (
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.UnknownHandler,
)
