"""What every compiled kernel needs of numba: that it is there, and its pool of threads.

Knows nothing about what is compiled.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

logger = logging.getLogger("ocr2")

Kernel = TypeVar("Kernel")

# One pool for the whole process, and it may take one caller at a time.
_one_caller = threading.Lock()


def made_by_numba(make: Callable[[], Kernel | None]) -> Kernel | None:
    """What make() returns; None where numba is not installed or told not to compile."""
    try:
        from numba import config

        return None if config.DISABLE_JIT else make()
    except ImportError:
        logger.info("this processor reads pages faster with numba: pip install numba")
        return None


@contextmanager
def numba_threads() -> Iterator[int]:
    """Hold numba's pool while a parallel kernel runs, set to as many threads as torch has now.

    Yields that number: fewer where the pool, made once for the machine's cores, has fewer.
    """
    from numba import config, set_num_threads

    with _one_caller:
        threads = min(torch.get_num_threads(), int(config.NUMBA_NUM_THREADS))
        set_num_threads(threads)
        yield threads
