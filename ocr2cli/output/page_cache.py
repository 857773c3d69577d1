"""A page cache by content: a page read once is never read again, by any run that shares the folder.

The key is the digest of the page's pixels with the run's fingerprint, which covers weights,
prompt, settings and tile rule. Knows nothing about documents or workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ocr2cli.config import RunConfig
from ocr2cli.output.parts import PartDamaged, from_json, to_json
from ocr2cli.pages import PageKey, PageResult
from ocr2cli.pipeline.durable import atomic_write

logger = logging.getLogger("ocr2")

# Checked against the size limit this often, counted in stores: a walk of the folder is not free.
_TRIM_EVERY = 64


class PageCache:
    """FOLDER/<2 hex>/<64 hex>: the digest of the entry, a newline, the part.

    Picklable: raster workers look pages up, the parent stores them.
    """

    def __init__(self, folder: Path, fingerprint: str, max_bytes: int) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        self.max_bytes = max_bytes
        self._num_stores = 0

    def find(self, key: PageKey, pixels_sha256: str) -> PageResult | None:
        """The cached result under this page's key; a damaged entry is dropped, not used."""
        path = self._path(pixels_sha256)
        try:
            digest, _, body = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        try:
            if hashlib.sha256(body).hexdigest().encode() != digest:
                raise PartDamaged("digest differs")
            result = from_json(body)
        except PartDamaged as damage:
            logger.warning("page cache: dropped a damaged entry (%s)", damage)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        # The oldest use is trimmed first. Another user's entry cannot be marked, and another run
        # may just have trimmed it: the page was read all the same.
        with contextlib.suppress(OSError):
            os.utime(path)
        result = _bare(result)  # entries of earlier versions hold more
        return replace(result, key=key, extra={**result.extra, "source": "cache"})

    def store(self, result: PageResult) -> None:
        """Keep a page that needs no second look; a full disk only costs the cache."""
        if not (result.status.is_good and result.pixels_sha256) or "source" in result.extra:
            return
        body = to_json(_bare(result))
        path = self._path(result.pixels_sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except OSError as error:
            logger.warning("page cache %s: %s", self.folder, error.strerror)
            return
        if self._num_stores % _TRIM_EVERY == 0:
            self._trim()
        self._num_stores += 1

    def _path(self, pixels_sha256: str) -> Path:
        name = hashlib.sha256(f"{pixels_sha256} {self.fingerprint}".encode()).hexdigest()
        return self.folder / name[:2] / name

    def _trim(self) -> None:
        """Delete the entries used longest ago until the folder is under its limit."""
        entries = []
        for path in self.folder.glob("??/" + "?" * 64):
            try:
                found = path.stat()
            except OSError:
                continue  # another run trimmed it first
            entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                return
            # Another user's, or no file at all: younger ones make the room.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                total -= size


def _bare(result: PageResult) -> PageResult:
    """Without what is its document's or its run's: the next document's business is none of it."""
    extra = {name: value for name, value in result.extra.items() if name != "same_pixels"}
    return replace(
        result, key=PageKey("", 0), input_sha256="", seconds={}, warnings=(), extra=extra
    )


def cache_opener(cfg: RunConfig) -> Callable[[str], PageCache] | None:
    """Fingerprint -> the run's cache, which a node of a cluster opens anew; None: it has none."""
    if not cfg.cache:
        return None
    return partial(_open_cache, Path(cfg.cache), cfg.cache_size)


def _open_cache(folder: Path, max_bytes: int, fingerprint: str) -> PageCache:
    return PageCache(folder, fingerprint, max_bytes)
