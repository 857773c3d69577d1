"""Inputs that are URLs: listed and copied through fsspec, an optional package.

Knows nothing about documents. `file://` is a local path and needs no package.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ocr2cli.errors import PageFault, extra_hint

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=://)[^/?#\s]*@")
_COPY_BYTES = 8 << 20
# What fsspec needs besides itself; s3fs, the tested one, comes with the extra.
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}


def is_url(path: str) -> bool:
    """True for `s3://...`, `gs://...` and the like."""
    return _URL.match(path) is not None


def local_path(given: str) -> str:
    """A `file://` URL as the path it stands for; anything else as it is."""
    if not given.lower().startswith("file://"):
        return given
    return url2pathname(urlsplit(given).path)


def without_password(url: str) -> str:
    """The URL, or a text with URLs in it, for people: no user names and passwords."""
    return _PASSWORD.sub("", url)


def name_of(url: str) -> str:
    """The URL as if it were an absolute path: what a document's name is made of."""
    return "/" + without_password(url).partition("://")[2].lstrip("/")


def list_url(url: str, endings: frozenset[str], hidden: str = "") -> tuple[str, list[str]]:
    """(URL of the folder that names count from, URLs of the documents), sorted.

    hidden: a URL below which nothing is listed. A folder is walked and a glob expanded; a URL
    that names nothing is given back as it is.
    Raises: PageFault when fsspec is absent or the server does not answer.
    """
    scheme = url.partition("://")[0]
    folder = url.rsplit("/", 1)[0]
    try:
        system, path = connect(url)
        if any(sign in path for sign in "*?["):
            found = sorted(system.glob(path))
            folder = re.split(r"[*?\[]", url, maxsplit=1)[0].rsplit("/", 1)[0]
        elif system.isdir(path):
            found = sorted(system.find(path))
            folder = url.rstrip("/")
        else:
            return folder, [url]
    except PageFault:
        raise
    except Exception as error:  # every fsspec backend raises its own
        raise _failed(url, error) from error
    wanted = [name for name in found if "." + name.rpartition(".")[2].lower() in endings]
    urls = [f"{scheme}://{name.lstrip('/')}" for name in wanted]
    if hidden:
        urls = [one for one in urls if not one.startswith(hidden.rstrip("/") + "/")]
    return folder, urls or [url]


def download(url: str) -> io.BufferedReader:
    """A copy of what the URL holds, in a temporary file that has no name.

    Raises: PageFault.
    """
    with tempfile.TemporaryFile(prefix="ocr2-") as copy:
        _copy(url, copy)
        copy.flush()
        return os.fdopen(os.dup(copy.fileno()), "rb")


def _copy(url: str, copy: IO[bytes]) -> None:
    try:
        system, path = connect(url)
        with system.open(path, "rb") as remote:
            while piece := remote.read(_COPY_BYTES):
                copy.write(piece)
    except PageFault:
        raise
    except Exception as error:  # as in list_url
        raise _failed(url, error) from error


def connect(url: str) -> tuple[Any, str]:
    """(fsspec's file system, path in it). Raises: PageFault without the packages it takes."""
    try:
        import fsspec
    except ImportError as error:
        raise _failed(url, "the package fsspec is not installed") from error
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise _failed(url, error) from error
    return system, path


def _failed(url: str, error: object) -> PageFault:
    reason = without_password(" ".join(str(error).split())[:160])
    package = _PACKAGES.get(url.partition("://")[0].lower())
    is_missing = "install" in reason.lower()
    hint = "Check the network and the credentials"
    if isinstance(error, FileNotFoundError | ValueError):
        hint = "Check the address"
    if is_missing:
        hint = f"Type: pip install {package}" if package else extra_hint("s3")
    return PageFault("unreadable", f"{without_password(url)} cannot be read: {reason}. {hint}.")
