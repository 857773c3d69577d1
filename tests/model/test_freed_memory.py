"""Compiled kernels work in memory that is theirs until they end.

numba frees an array as soon as only its address is used. What was freed holds the old numbers until
another thread asks for memory, so a kernel that reads it is right nearly always. glibc can fill
freed memory with a pattern; then it is wrong at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("test_map_attention.py", "exact_attention or change_a_bit"),
        ("test_token_products.py", "meets_its_expert or no_trouble"),
        ("test_token_attention.py", "exact_attention or change_a_bit"),
    ],
)
def test_no_kernel_reads_what_was_freed(file: str, tests: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", tests]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name(file))],
        env={**os.environ, "MALLOC_PERTURB_": "165"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
