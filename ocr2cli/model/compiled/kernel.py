"""A kernel: a function that numba compiles for this processor, kept for the next process.

Compiling takes 2 to 3 s a kernel, reading what was kept a hundredth of that. numba's own cache is
of no use here: it never finds a function made inside a function again, does not see a change in
another file, and fails on a file that a power cut left half written. Here a kernel is found by
everything that it is made from, its code has names that no other kernel's has, what is read must
be whole and its owner's own, and whatever is wrong with it means compiling as before, never an
error.
Knows nothing about what is compiled.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import pickle
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ocr2cli.home import user_folder

logger = logging.getLogger("ocr2")

_SUM_BYTES = hashlib.sha256().digest_size


def compile_kernel(
    signature: Any, variant: str, **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """numba's `njit(signature, **options)` for a function of this folder, kept on disk.

    variant: what the function's free variables were made from, where that is not the same always.
    Raises: ImportError without numba.
    """
    from numba import njit
    from numba.core.compiler_lock import global_compiler_lock

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        name = f"{function.__module__.rpartition('.')[2]}-{function.__name__}"
        with global_compiler_lock:  # a second thread that wants the same finds it kept
            path = _path(dispatcher, name, f"{variant}\n{options}\n{signature}")
            if path is None or not _take(dispatcher, path):
                logger.info("compiling %s for this processor", name)
                with _names_of_its_own(path) as are_its_own:
                    dispatcher.compile(signature)
                if path is not None and are_its_own:
                    _keep(dispatcher, path)
        dispatcher.disable_compile()
        return dispatcher

    return compiled


def kernel_folder() -> Path:
    """Where this user's kernels are kept. Raises: RuntimeError for a user without a home."""
    return user_folder("cache") / "kernels"


def _path(dispatcher: Any, name: str, made_from: str) -> Path | None:
    """Where a kernel is kept; None where that cannot be said."""
    try:
        folder, processor = kernel_folder(), dispatcher.targetctx.codegen().magic_tuple()
        made_from = f"{_tools()}\n{_source()}\n{processor}\n{made_from}"
    except Exception as error:
        logger.debug("cannot keep %s: %s: %s", name, type(error).__name__, error)
        return None
    return folder / f"{name}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.bin"


@contextmanager
def _names_of_its_own(path: Path | None) -> Iterator[bool]:
    """What is compiled meanwhile has names that no other kernel's pieces have. False where there is
    no path, or this numba has none to give.

    numba tells functions of one name apart by the order in which a process compiled them, and the
    linker takes the first of two pieces of code of one name for both: two variants kept by two
    processes would both be the one that was loaded first. So the count starts at the path's digest.
    """
    from numba.core.bytecode import FunctionIdentity

    before = getattr(FunctionIdentity, "_unique_ids", None)
    if path is None or not isinstance(before, itertools.count):
        yield False
        return
    FunctionIdentity._unique_ids = itertools.count(int(path.stem.rpartition("-")[2], 16))
    try:
        yield True
    finally:
        FunctionIdentity._unique_ids = before


def _take(dispatcher: Any, path: Path) -> bool:
    """Give a kernel the code that was kept, as numba's own cache does. False if it has none."""
    try:
        from numba.core.compiler import CompileResult

        kept = pickle.loads(_read_own(path))
        context = dispatcher.targetctx
        context.refresh()
        result = CompileResult._rebuild(context, *kept)
        context.insert_user_function(result.entry_point, result.fndesc, [result.library])
        dispatcher.add_overload(result)
    except FileNotFoundError:
        return False
    except Exception as error:
        # Whatever it is, compiling costs a few seconds; an error would cost the run.
        logger.debug("compiling anew, %s: %s: %s", path, type(error).__name__, error)
        return False
    return True


def _keep(dispatcher: Any, path: Path) -> None:
    """Best effort: a full disk or a read-only home costs the next process its seconds."""
    try:
        from numba.core.serialize import dumps

        (result,) = dispatcher.overloads.values()
        _write_whole(path, dumps(result._reduce()))
    except Exception as error:
        logger.debug("cannot keep %s: %s: %s", path, type(error).__name__, error)


def _tools() -> str:
    """Everything outside this folder that changes what numba makes of a function."""
    import llvmlite
    import numba

    settings = sorted(item for item in os.environ.items() if item[0].startswith("NUMBA_"))
    return f"{sys.version} {numba.__version__} {llvmlite.__version__} {settings}"


@cache
def _source() -> str:
    """Of all files here: kernels are made of each other's pieces. Raises: OSError."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _read_own(path: Path) -> bytes:
    """What `_write_whole` wrote. It is code, so nobody else may have had a hand in it.

    Raises: OSError; ValueError for a file that is not whole or that others can write to.
    """
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        is_own = not hasattr(os, "geteuid") or state.st_uid == os.geteuid()
        if not is_own or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise ValueError("the file is not this user's alone")
        checksum, data = file.read(_SUM_BYTES), file.read()
    if hashlib.sha256(data).digest() != checksum:
        raise ValueError("the file is damaged")
    return data


def _write_whole(path: Path, data: bytes) -> None:
    """All or nothing, whoever else writes the same. Raises: OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)  # readable by its owner alone
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
