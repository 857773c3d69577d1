"""The output folder: every file is written to a temporary one first and then renamed into place.

Folders are walked by file descriptor and never through a symlink, so nothing can be written
outside OUT. Knows nothing about pages or formats.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ocr2cli.errors import OutputError
from ocr2cli.pipeline.durable import sync_folder
from ocr2cli.pipeline.output_faults import GONE, output_error
from ocr2cli.printing import printable

logger = logging.getLogger("ocr2")

STATE = ".ocr2"
_TMP = f"{STATE}/tmp"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DocumentFault(Exception):
    """One document's files cannot be put in place; the run goes on. The message is for people."""


@dataclass(slots=True)
class Staged:
    """A whole file in OUT/.ocr2/tmp, waiting for its name."""

    name: str
    sha256: str = ""
    size_bytes: int = 0


@dataclass(slots=True)
class StagedWriter:
    """The stream a format writes to: counts and digests what goes through."""

    stream: BinaryIO
    size_bytes: int = 0
    _sha256: hashlib._Hash = field(default_factory=hashlib.sha256)

    def write(self, data: bytes) -> None:
        self.stream.write(data)
        self._sha256.update(data)
        self.size_bytes += len(data)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


class OutFolder:
    """OUT, held open. A symlink given as OUT is followed once, here; none below it is."""

    def __init__(self, out: Path) -> None:
        self.path = Path(os.path.realpath(out))
        self._num_staged = 0
        self._root = -1
        with self._errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._tmp = self._folder(_TMP, is_made=True)
            self._sweep()
        except (DocumentFault, OSError) as error:
            os.close(self._root)
            if isinstance(error, OSError):
                raise output_error(self.path / _TMP, error) from error
            raise OutputError(
                f"{error} It must be a real folder inside the output folder."
            ) from None

    def close(self) -> None:
        os.close(self._tmp)
        os.close(self._root)

    def __enter__(self) -> OutFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def stage(self, staged: list[Staged]) -> Iterator[StagedWriter]:
        """A stream into a new temporary file, appended to `staged` once it is on the disk.

        Raises: OutputError on a full or read-only disk, DocumentFault when what goes into it
        cannot be made; the temporary file is then gone.
        """
        self._num_staged += 1
        name = f"{os.getpid()}-{self._num_staged}"
        try:
            with self._errors(self.path / _TMP / name):
                descriptor = os.open(name, _NEW_FLAGS, 0o666, dir_fd=self._tmp)
                with open(descriptor, "wb") as stream:
                    writer = StagedWriter(stream)
                    yield writer
                    stream.flush()
                    os.fsync(stream.fileno())
        except BaseException:
            self._unlink(name, self._tmp)
            raise
        staged.append(Staged(name, writer.sha256, writer.size_bytes))

    def publish(self, staged: Staged, relative: str) -> None:
        """Renames a staged file to `relative`, below OUT; a symlink there is replaced itself.

        Raises: DocumentFault when a folder or file stands in the way; OutputError when the
        folder cannot be written.
        """
        folder, name = _split(relative)
        with self._errors(self.path / relative):
            descriptor = self._folder(folder, is_made=True)
            try:
                os.rename(staged.name, name, src_dir_fd=self._tmp, dst_dir_fd=descriptor)
                sync_folder(descriptor)
            except OSError as error:
                if error.errno in _IN_THE_WAY:
                    raise DocumentFault(
                        f"{printable(str(self.path / relative))} cannot be replaced: "
                        f"{os.strerror(error.errno)}. Move it away and run again."
                    ) from None
                raise
            finally:
                os.close(descriptor)

    def set_aside(self, relative: str) -> str:
        """Renames a file to the first of `relative~`, `relative~2`... that is free; returns it.

        Raises: OutputError when the folder cannot be written.
        """
        folder, name = _split(relative)
        with self._errors(self.path / relative):
            descriptor = self._folder(folder, is_made=False)
            try:
                taken = set(os.listdir(descriptor))
                numbered = (f"~{number}" for number in itertools.count(2))
                ending = next(
                    one for one in itertools.chain("~", numbered) if name + one not in taken
                )
                os.rename(name, name + ending, src_dir_fd=descriptor, dst_dir_fd=descriptor)
                sync_folder(descriptor)
            finally:
                os.close(descriptor)
        return relative + ending

    def write(self, relative: str, data: bytes) -> str:
        """Writes a small file in one go; returns its SHA-256. Raises as `stage` and `publish`."""
        staged: list[Staged] = []
        with self.stage(staged) as stream:
            stream.write(data)
        try:
            self.publish(staged[0], relative)
        except BaseException:
            self.drop(staged)
            raise
        return staged[0].sha256

    def drop(self, staged: list[Staged]) -> None:
        """Removes staged files that will not be published."""
        for one in staged:
            self._unlink(one.name, self._tmp)

    def read(self, relative: str) -> bytes | None:
        """The bytes of a regular file below OUT, or None when there is none (or a symlink)."""
        with self._opened(relative) as stream:
            return None if stream is None else stream.read()

    def sha256(self, relative: str) -> str | None:
        """The hex digest of a regular file below OUT, or None when there is none."""
        with self._opened(relative) as stream:
            if stream is None:
                return None
            digest = hashlib.sha256()
            while block := stream.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()

    def remove(self, relative: str) -> None:
        """Removes a file below OUT if it is there, and its folder if that is then empty."""
        folder, name = _split(relative)
        with contextlib.suppress(OSError, DocumentFault):
            descriptor = self._folder(folder, is_made=False)
            self._unlink(name, descriptor)
            os.close(descriptor)
            parent, last = _split(folder)
            if last:
                descriptor = self._folder(parent, is_made=False)
                try:
                    os.rmdir(last, dir_fd=descriptor)
                finally:
                    os.close(descriptor)

    def look_for(self) -> None:
        """A folder that is moved is still written to; whoever looks for it by its name is told.

        Raises: OutputError when nothing has its name, or it was deleted.
        """
        root, name = os.fstat(self._root), printable(str(self.path))
        where = "where it was moved to"
        with contextlib.suppress(OSError):  # Linux knows
            where = printable(os.readlink(f"/proc/self/fd/{self._root}"))
        try:
            if os.path.samestat(os.stat(self.path), root):
                return
            if self._is_deleted():
                raise self._deleted()
        except OSError as error:
            if self._is_deleted():
                raise self._deleted() from error
            raise OutputError(
                f"{name} is gone, moved during the run: what was read is in {where} now. Move it "
                "back, or run the same command again."
            ) from error
        logger.warning(
            "%s is another folder than when the run began: what was read is in %s now", name, where
        )

    def holds(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of the paths that lie in OUT, relative to it."""
        real = cache(os.path.realpath)
        inside = set()
        for folder, name in map(os.path.split, paths):
            path = Path(real(folder), name)
            if path.is_relative_to(self.path):
                inside.add(path.relative_to(self.path).as_posix())
        return frozenset(inside)

    def is_same_file(self, relative: str, other: str) -> bool:
        """True when `relative` below OUT and the path `other` are one file on the disk."""
        with contextlib.suppress(OSError):
            return os.path.samefile(self.path / relative, other)
        return False

    @contextlib.contextmanager
    def _opened(self, relative: str) -> Iterator[BinaryIO | None]:
        folder, name = _split(relative)
        try:
            descriptor = self._folder(folder, is_made=False)
            try:
                opened = os.open(name, _READ_FLAGS, dir_fd=descriptor)
            finally:
                os.close(descriptor)
        except (OSError, DocumentFault):
            yield None
            return
        if not _is_regular(opened):  # `open` takes no folder
            os.close(opened)
            yield None
            return
        with open(opened, "rb") as stream:
            yield stream

    def _folder(self, relative: str, *, is_made: bool) -> int:
        """A descriptor of the folder `relative` below OUT, made when missing. The caller closes it.

        Raises: DocumentFault when a part of it is a file or a symlink.
        """
        descriptor = os.dup(self._root)
        for part in relative.split("/") if relative else ():
            try:
                below = self._step(part, descriptor, is_made=is_made)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise DocumentFault(
                        f"{printable(str(self.path / relative))} cannot be used: {printable(part)} "
                        "is a file or a symlink. Move it away and run again."
                    ) from None
                raise
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def _step(self, part: str, parent: int, *, is_made: bool) -> int:
        if is_made:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, dir_fd=parent)
                sync_folder(parent)
        return os.open(part, _FOLDER_FLAGS, dir_fd=parent)

    def _sweep(self) -> None:
        """Whatever lies in OUT/.ocr2/tmp was left by a run that was killed."""
        for name in os.listdir(self._tmp):
            self._unlink(name, self._tmp)

    def _unlink(self, name: str, folder: int) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=folder)

    @contextlib.contextmanager
    def _errors(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno is None:  # Pillow's, of a picture that it cannot encode: not the disk's
                raise DocumentFault(
                    f"one of its pictures cannot be made: {printable(str(error))}. "
                    "Run again with other formats (`--format`)."
                ) from error
            if error.errno in GONE and self._is_deleted():
                raise self._deleted() from error
            raise output_error(path, error) from error

    def _is_deleted(self) -> bool:
        """True when OUT has no name any more, and so nothing in it; one that was moved has."""
        try:
            return not os.fstat(self._root).st_nlink
        except OSError:  # not open yet, or a server's that forgot it
            return False

    def _deleted(self) -> OutputError:
        return OutputError(
            f"{printable(str(self.path))} was deleted during the run, and with it what was read. "
            "Run the same command again to read it anew."
        )


_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG)


def _split(relative: str) -> tuple[str, str]:
    folder, _, name = relative.rpartition("/")
    return folder, name


def _is_regular(descriptor: int) -> bool:
    return stat.S_ISREG(os.fstat(descriptor).st_mode)
