"""Finished documents copied to an object store: `-o s3://bucket/prefix`, through fsspec.

A run with a URL as its output works in a local folder as any other (parts, journal, documents);
what `Writer` has finished is uploaded from there, file by file, in threads. An object is whole or
absent, as object stores promise; each is checked after it was put. What was uploaded is noted
beside the journal, so a rerun uploads what is missing and nothing else. Knows nothing about pages.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import random
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocr2cli.document.urls import connect, without_password
from ocr2cli.errors import OutputError, PageFault, UsageError
from ocr2cli.home import user_folder
from ocr2cli.output.names import document_digest
from ocr2cli.pipeline.durable import atomic_write
from ocr2cli.printing import printable

logger = logging.getLogger("ocr2")

# Stores in which an object appears whole or not at all. (`file://` is a local path, not one.)
SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
_MARKER = ".ocr2/writer.json"
_THREADS = 8
# Documents whose uploads are under way; beyond that the run waits for the network.
_MAX_PENDING = 32
_TRIES = 5
# What S3, Google and Azure allow for the name of an object.
_MAX_KEY_BYTES = 1_024
_FIRST_PAUSE_S = 0.5
_MD5 = re.compile(r"[0-9a-f]{32}\Z")

Stop = Callable[[], int]


@dataclass(frozen=True, slots=True)
class _Task:
    """One document's files: relative path -> SHA-256 of the local file. name: the document's, as
    the summary has it; picture_folders: what lies in them and is none of the files is a figure
    that the document lost."""

    document: str
    name: str
    files: Mapping[str, str]
    picture_folders: frozenset[str]

    def is_figure(self, name: str) -> bool:
        return name.rpartition("/")[0] in self.picture_folders


class Bucket:
    """A prefix in an object store, written from the local folder `staging`. Used by one thread."""

    def __init__(self, url: str, staging: Path, *, stop: Stop = lambda: 0) -> None:
        """Connects and puts a small object that says who writes here, before any page is read.

        stop: stop requests so far; a second one gives up uploads under way.
        Raises: UsageError for a scheme that is no object store or whose package is missing;
        OutputError when the store cannot be written.
        """
        self.url = url.rstrip("/")
        self._staging = staging
        self._stop = stop
        self.num_uploaded = 0
        check_scheme(url)
        try:
            self._system, root = connect(self.url)
        except PageFault as fault:
            message = fault.message.replace(" cannot be read: ", " cannot be used: ")
            raise UsageError(f"-o {message}") from fault
        except Exception as error:  # every fsspec backend raises its own
            raise self._cannot_write("", error) from error
        self._root = root.rstrip("/")
        self._notes = Path(os.path.realpath(staging)) / ".ocr2" / "uploads"
        self._notes.mkdir(parents=True, exist_ok=True)
        self._put_marker()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ocr2-upload")
        self._pending: deque[Future[int]] = deque()
        self._faults: list[tuple[str, str]] = []

    @property
    def faults(self) -> list[tuple[str, str]]:
        """Names of documents that could not be put there, with the reason; the run went on."""
        return self._faults

    def offer(
        self,
        document: str,
        name: str,
        files: Mapping[str, str],
        picture_folders: Collection[str] = (),
    ) -> None:
        """Upload a finished document's files, or those of them that are not there yet.

        document: its id; name: what a fault calls it.
        Waits while too many uploads are under way.
        Raises: OutputError when an earlier upload failed for good.
        """
        task = _Task(document, name, dict(files), frozenset(picture_folders))
        while len(self._pending) >= _MAX_PENDING or (self._pending and self._pending[0].done()):
            self._take()
        self._pending.append(self._pool.submit(self._upload, task))

    def close(self, *, is_failing: bool = False) -> None:
        """Wait for the uploads under way, unless told to stop or the run fails anyway.

        Raises: OutputError when one of them failed for good.
        """
        try:
            while self._pending and not is_failing and self._stop() < 2:
                self._take()
        finally:
            self._pending.clear()
            self._pool.shutdown(wait=not is_failing and self._stop() < 2, cancel_futures=True)

    def take_away(self, name: str) -> None:
        """What an earlier run put there and is true no more."""
        self._remove({name})

    def put_last(self, name: str) -> None:
        """The run's own word on how it went, after `close` and also where uploads failed. That it
        cannot be put is told, and changes nothing."""
        if self._stop() >= 2:
            return
        data = (self._staging / name).read_bytes()
        try:
            self._retried(name, lambda: self._system.pipe_file(self._path(name), data), tries=1)
        except OutputError as error:
            logger.warning("%s", error)

    def _take(self) -> None:
        first = self._pending[0]
        while not first.done() and self._stop() < 2:
            _wait_a_moment(first)
        if first.done():
            self._pending.popleft()
            self.num_uploaded += first.result()
        else:
            self._pending.clear()

    # -- in the pool's threads

    def _upload(self, task: _Task) -> int:
        """Number of files that had to be uploaded."""
        for name in task.files:
            if len(self._path(name).encode()) > _MAX_KEY_BYTES:
                reason = f"{self._shown(name)} has more than {_MAX_KEY_BYTES:,} bytes: rename it"
                self._faults.append((task.name, reason))
                return 0
        notes = self._notes / f"{document_digest(task.document)}.json"
        known = _read_notes(notes, self.url)
        # The text that links to figures comes after them.
        names = sorted(task.files, key=lambda name: (not task.is_figure(name), name))
        count = sum(self._upload_file(name, task.files[name], known.get(name)) for name in names)
        lost = {name for name in known if task.is_figure(name)} - set(task.files)
        self._remove(lost)
        if count or lost:
            # What runs in other formats put there stays, and is known as this document's.
            left = {name: sha256 for name, sha256 in known.items() if name not in lost}
            files = {**left, **task.files}
            row = {"document": task.document, "url": self.url, "files": files}
            atomic_write(notes, json.dumps(row).encode("ascii") + b"\n")
        return count

    def _upload_file(self, name: str, sha256: str, known: str | None) -> bool:
        local = self._staging / name
        remote = self._path(name)
        try:
            with open(local, "rb") as stream:
                md5 = _md5_of(stream)
        except OSError as error:
            raise OutputError(
                f"cannot read {printable(str(local))}: {error.strerror}. Run the same command "
                "again; finished pages are kept."
            ) from error
        if known == sha256 and self._retried(name, lambda: self._is_there(remote, local, md5)):
            return False
        self._retried(name, lambda: self._put(local, remote, md5))
        return True

    def _put(self, local: Path, remote: str, md5: str) -> None:
        self._system.put_file(os.fspath(local), remote)
        if not self._is_there(remote, local, md5):
            raise OSError("the object that was put is not the one that is there")

    def _is_there(self, remote: str, local: Path, md5: str) -> bool:
        """The store's size and digest are the local file's; read back where it keeps no MD5."""
        self._system.invalidate_cache(self._system._parent(remote))
        try:
            facts = self._system.info(remote)
        except FileNotFoundError:
            return False
        if facts.get("size") != local.stat().st_size:
            return False
        stored = _stored_md5(facts)
        # A key of the store's own, or an upload in parts, gives an ETag that is no MD5 of ours.
        if stored == md5:
            return True
        with self._system.open(remote, "rb") as stream:
            return _md5_of(stream) == md5

    def _remove(self, names: set[str]) -> None:
        """What an earlier run put there and is no longer wanted."""
        for name in names:
            try:
                self._system.rm_file(self._path(name))
            except FileNotFoundError:
                continue
            except Exception as error:  # no document is less whole for it
                logger.warning("%s was not removed: %s", self._shown(name), _line(error))

    def _retried(self, name: str, attempt: Callable[[], Any], *, tries: int = _TRIES) -> Any:
        pause_s = _FIRST_PAUSE_S
        for number in range(1, tries + 1):
            try:
                return attempt()
            except Exception as error:  # as in __init__
                if number == tries or _is_final(error) or self._stop() >= 2:
                    raise self._cannot_write(name, error) from error
                logger.info("%s: %s; trying again", self._shown(name), _line(error))
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s *= 2
        raise AssertionError("the last try returns or raises")

    # -- small things

    def _put_marker(self) -> None:
        row = {"host": socket.gethostname(), "pid": os.getpid(), "state": str(self._staging)}
        data = json.dumps(row).encode("ascii") + b"\n"
        # Once: nothing is lost yet, and the stores' own packages try a few times anyway.
        self._retried(_MARKER, lambda: self._system.pipe_file(self._path(_MARKER), data), tries=1)

    def _path(self, name: str) -> str:
        # Keys are text on one line; what is not is spelled out, as in messages. s3fs would take
        # `?versionId=` for an object's version and cut it off.
        text = printable(name).replace("?versionId=", "\\x3fversionId=")
        return f"{self._root}/{text}"

    def _shown(self, name: str) -> str:
        return printable(without_password(f"{self.url}/{name}" if name else self.url))

    def _cannot_write(self, name: str, error: Exception) -> OutputError:
        if isinstance(error, PermissionError) or "credential" in str(error).lower():
            advice = "Check the credentials (AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret)"
        elif isinstance(error, FileNotFoundError):
            advice = "Make the bucket, or mend its name in `-o`"
        else:
            advice = "Check the network and the address (AWS_ENDPOINT_URL)"
        return OutputError(
            f"cannot write {self._shown(name)}: {_line(error)}. {advice}, then run the same "
            "command again; finished pages are kept."
        )


def check_scheme(url: str) -> None:
    """Raises: UsageError for what is no object store: a half-written file could be seen there; and
    for one without the name of a bucket."""
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        raise UsageError(
            f"-o {without_password(url)}: outputs go to a local folder or to one of "
            f"{', '.join(f'{name}://' for name in SCHEMES if name != 'memory')}"
        )
    if not without_password(url).partition("://")[2].partition("/")[0]:
        raise UsageError(f"-o {without_password(url)} names no bucket. Write {scheme}://BUCKET/DIR")


def staging_folder(url: str, state: Path | None) -> Path:
    """Where the run of an output URL keeps its state and its files: one folder for each URL.

    state: the folder the user gave; by default the user's state folder. Raises: UsageError without
    either.
    """
    plain = without_password(url).rstrip("/")
    if state is not None:
        return state
    try:
        folder = user_folder("state")
    except RuntimeError as error:
        raise UsageError(
            f"{plain}: {error} to keep the run's state in. Say where: --state DIR."
        ) from error
    digest = hashlib.sha256(plain.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", plain).strip("-.")[:60]
    return folder / "outputs" / f"{slug}-{digest}"


def _read_notes(path: Path, url: str) -> dict[str, str]:
    """What was uploaded of a document to this URL; nothing when the note is missing or damaged."""
    try:
        row = json.loads(path.read_bytes())
        if row["url"] != url:
            return {}
        return {str(name): str(sha256) for name, sha256 in row["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _stored_md5(facts: Mapping[str, Any]) -> str:
    """S3 says it in hex and quotes, Google and Azure in base64; "" where there is none."""
    etag = str(facts.get("ETag", "")).strip('"').lower()
    if _MD5.match(etag):
        return etag
    for name in ("md5Hash", "content_md5"):
        value = facts.get(name) or (facts.get("content_settings") or {}).get(name)
        if value:
            raw = base64.b64decode(value) if isinstance(value, str) else bytes(value)
            return raw.hex()
    return ""


def _md5_of(stream: Any) -> str:  # any file that fsspec opens
    return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _is_final(error: Exception) -> bool:
    """Another try cannot help: refused, or nothing of this name."""
    is_refused = isinstance(error, (PermissionError, FileNotFoundError))
    return is_refused or "credential" in str(error).lower()


def _wait_a_moment(future: Future[int]) -> None:
    try:
        future.exception(timeout=0.1)
    except TimeoutError:
        return


def _line(error: Exception) -> str:
    return (
        without_password(printable(" ".join(str(error).split())[:200])).rstrip(".")
        or type(error).__name__
    )
