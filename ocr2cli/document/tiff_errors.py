"""What libtiff says while Pillow decodes with it, caught before it reaches stderr.

Where a fax is damaged libtiff says so and goes on, and Pillow takes what comes for the picture.
Knows nothing about pages: libtiff has one handler of errors a process.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import cache

_MAX_BYTES = 200
_MAX_KEPT = 10_000  # a fax may have as many as rows

_said: list[str] = []
_format = ctypes.pythonapi.PyOS_vsnprintf
_format.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p)


def _keep(module: bytes | None, template: bytes, values: int) -> None:
    if len(_said) < _MAX_KEPT:
        line = ctypes.create_string_buffer(_MAX_BYTES)
        _format(line, _MAX_BYTES, template, values)
        _said.append((b"%s: %s" % (module or b"libtiff", line.value)).decode("ascii", "replace"))


_handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_keep)


@contextlib.contextmanager
def tiff_errors() -> Iterator[list[str]]:
    """Libtiff's errors of the block, filled at its end; for one thread at a time. Where Pillow's
    libtiff is out of reach there are none."""
    said: list[str] = []
    set_handler = _set_handler()
    if set_handler is None:
        yield said
        return
    _said.clear()
    before = set_handler(_handler)
    try:
        yield said
    finally:
        set_handler(before)
        said += _said


@cache
def _set_handler() -> Callable[[object], object] | None:
    """libtiff's function, which gives the handler before; None where its name is hidden."""
    from PIL import _imaging

    try:
        # Looked up through Pillow's module, it is that of the library that Pillow was linked with.
        function = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p,), ctypes.c_void_p
    return function
