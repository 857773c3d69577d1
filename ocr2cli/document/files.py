"""Input files as bytes: only regular ones are opened, and only what looks like a document.

Knows nothing about pages, PDF or pixels.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from dataclasses import dataclass
from enum import StrEnum

from ocr2cli.document.urls import download, is_url, without_password
from ocr2cli.errors import PageFault
from ocr2cli.printing import printable

# A file up to this size is read once: the bytes that were hashed are the bytes that are parsed,
# whatever happens to the file meanwhile. A larger one stays on disk.
MAX_BYTES_IN_MEMORY = 64 << 20

_HEAD_BYTES = 1024
_MIN_SPARSE_BYTES = 4 << 30

# What a process that must not hang or die may open itself: Python code reads the headers of these,
# in no time up to this size, and no more than one page is in them.
PLAIN_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
PLAIN_BYTES = 8 << 20

# BMP's: two letters that much else begins with.
_SHORT_MAGIC = b"BM"
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

PDF_ENDING = ".pdf"
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif")
HEIF_ENDINGS = (".heic", ".heif", ".hif")
ENDINGS = frozenset((PDF_ENDING, *IMAGE_ENDINGS, *HEIF_ENDINGS))


class Kind(StrEnum):
    """What opens a file: MuPDF, Pillow, or Pillow with an extra package."""

    PDF = "pdf"
    IMAGE = "image"
    HEIF = "heif"


@dataclass(slots=True)
class InputFile:
    """An open regular file. stamp: (size, mtime in ns, inode), by which a change shows."""

    path: str
    file: io.BufferedReader
    stamp: tuple[int, int, int]
    _data: bytes | None = None

    @property
    def size_bytes(self) -> int:
        return self.stamp[0]

    @property
    def is_small(self) -> bool:
        return self.size_bytes <= MAX_BYTES_IN_MEMORY

    def read(self) -> bytes:
        """The whole file, read once: later calls give the same bytes."""
        if self._data is None:
            self.file.seek(0)
            self._data = self.file.read()
        return self._data

    def sha256(self) -> str:
        """Hex digest of the whole file; of the bytes that `read` gives, for a small one."""
        if self.is_small:
            return hashlib.sha256(self.read()).hexdigest()
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def is_current(self) -> bool:
        """True while the file of this name is the one that is open here."""
        # What a URL gave was copied; asking the server again for every page would cost more.
        if is_url(self.path):
            return True
        try:
            return _stamp(os.stat(self.path)) == self.stamp
        except OSError:
            return False

    def close(self) -> None:
        self.file.close()

    def has_changed(self) -> bool:
        """True when the open file was written to since it was opened."""
        return _stamp(os.fstat(self.file.fileno())) != self.stamp


def shown(path: str) -> str:
    """A path for people, on one line: relative where that is shorter, odd characters escaped."""
    if is_url(path):
        return printable(without_password(path))
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # no current folder, or another drive
        relative = path
    text = path if relative.startswith("..") else relative
    return printable(text)


def open_input(path: str) -> InputFile:
    """Open a regular file, or a copy of what a URL holds. Pipes and devices are never opened.

    Raises: PageFault not_a_file or unreadable.
    """
    if is_url(path):
        copy = download(path)
        return InputFile(path, copy, _stamp(os.fstat(copy.fileno())))
    try:
        _require_regular(path, os.stat(path))
        # Between the two calls a pipe may have taken the name; without O_NONBLOCK it would hang.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except (OSError, ValueError) as error:
        raise _cannot_open(path, error) from error
    status = os.fstat(file.fileno())
    try:
        _require_regular(path, status)
        _refuse_sparse(path, status)
    except PageFault:
        file.close()
        raise
    return InputFile(path, file, _stamp(status))


def sniff(source: InputFile) -> Kind:
    """The kind of a file by its first bytes, whatever its name says.

    Raises: PageFault empty or unsupported.
    """
    source.file.seek(0)
    head = source.file.read(_HEAD_BYTES)
    is_pdf = b"%PDF-" in head
    # An image may speak of a PDF in its comment, a PDF may follow a few bytes of something else.
    if _is_image(head) and not (is_pdf and head.startswith(_SHORT_MAGIC)):
        return Kind.IMAGE
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return Kind.HEIF
    if is_pdf:
        return Kind.PDF
    if not source.size_bytes:
        raise PageFault("empty", f"{shown(source.path)} is empty. Copy the file again.")
    raise PageFault(
        "unsupported",
        f"{shown(source.path)} is {_guess(head)}, not a PDF or an image that can be read. "
        "Convert it to PDF, or leave it out.",
    )


def is_plain_image(data: bytes) -> bool:
    """True for a file that `sniff` takes for an image by the magic of PNG or JPEG, and not large:
    what a process of its own, 0.3 s of a core, is not needed for."""
    return data.startswith(PLAIN_MAGICS) and len(data) <= PLAIN_BYTES


def _is_image(head: bytes) -> bool:
    magics = (*PLAIN_MAGICS, b"GIF87a", b"GIF89a", _SHORT_MAGIC)
    tiffs = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(magics) or head.startswith(tiffs) or is_webp


def _guess(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)"
    if start.startswith(b"<"):
        return "XML or HTML"
    if head.startswith(b"PK\x03\x04"):
        return "a ZIP archive or an office document"
    if head.startswith(b"\xd0\xcf\x11\xe0"):
        return "an old office document"
    if not head.strip(b"\0"):
        return "a file of zeros"
    is_text = not any(byte < 9 for byte in head)
    return "plain text" if is_text else "data of an unknown kind"


def _require_regular(path: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode), "no regular file")
    is_folder = kind == "a folder"
    hint = "Give it a name without the ending" if is_folder else "Copy its content to a file"
    if is_folder and os.path.splitext(path)[1].lower() not in ENDINGS:
        raise PageFault(
            "unreadable",
            f"{shown(path)} is a folder that may not be looked into. Allow it with `chmod u+rx`.",
        )
    raise PageFault("not_a_file", f"{shown(path)} is {kind}, not a file. {hint}.")


def _refuse_sparse(path: str, status: os.stat_result) -> None:
    # A file of holes is terabytes to read and nothing to see. A scan whose paper is zeros may have
    # holes, too, and where nothing is counted as stored the file system does not count.
    num_stored = getattr(status, "st_blocks", status.st_size) * 512
    if status.st_size > _MIN_SPARSE_BYTES and 0 < num_stored * 8 < status.st_size:
        raise PageFault(
            "unreadable",
            f"{shown(path)} is a sparse file: of {status.st_size:,} bytes only {num_stored:,} are "
            "stored. If it is a document, copy it with `cp --sparse=never`.",
        )


def _cannot_open(path: str, error: Exception) -> PageFault:
    if os.path.islink(path) and isinstance(error, FileNotFoundError):
        return PageFault(
            "not_a_file", f"{shown(path)} is a link to a file that is not there. Mend the link."
        )
    if isinstance(error, FileNotFoundError):
        return PageFault("unreadable", f"{shown(path)} is not there. Check the name.")
    if isinstance(error, PermissionError):
        return PageFault("unreadable", f"{shown(path)} may not be read. Allow it with `chmod u+r`.")
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, OSError) and error.errno == errno.ENXIO:
        return PageFault("not_a_file", f"{shown(path)} is no regular file ({reason}).")
    return PageFault("unreadable", f"{shown(path)} cannot be opened: {reason}.")


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return (status.st_size, status.st_mtime_ns, status.st_ino)
