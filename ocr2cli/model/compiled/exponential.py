"""Powers of two for compiled softmaxes, written so that they fill vectors."""

from __future__ import annotations

from collections.abc import Callable
from math import e, log2

import numpy as np

LOG2_E = log2(e)
# 1.5 * 2^23: a float32 added to it is rounded to a whole number, which its low bits then hold.
ROUNDING = np.float32(12582912.0)


def make_power_of_two() -> Callable[[np.float32], np.float32]:
    """numba's 2^x for float32 x <= 0, off by 3e-7 of the value at most; 2^-126 for anything less,
    nan for a nan. No caller may have fast mathematics: it would undo the rounding below.

    Raises: ImportError.
    """
    from numba import njit

    shift = ROUNDING

    @njit
    def power_of_two(x):  # type: ignore[no-untyped-def]
        x = np.float32(-126.0) if x < np.float32(-126.0) else x
        shifted = x + shift
        rest = x - (shifted - shift)
        # Fitted to 2^rest from -1/2 to 1/2, the relative error made even.
        power = np.float32(1.3276469944e-3)
        power = power * rest + np.float32(9.6755413182e-3)
        power = power * rest + np.float32(5.5507132798e-2)
        power = power * rest + np.float32(2.4022119724e-1)
        power = power * rest + np.float32(6.9314696706e-1)
        power = power * rest + np.float32(1.0000000717)
        # The low bits of `shifted` are the whole number: into the exponent.
        scale = np.uint32((np.float32(shifted).view(np.uint32) + np.uint32(127)) << np.uint32(23))
        return power * np.uint32(scale).view(np.float32)

    return power_of_two
