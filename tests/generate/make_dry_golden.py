"""Make tests/golden/llama/dry.json: what llama.cpp's own DRY sampler does to seeded logits.

Usage: python tests/generate/make_dry_golden.py PATH/TO/libllama.so "llama.cpp version"
Only the logits that changed are stored, as float32 bit patterns.
"""

from __future__ import annotations

import ctypes
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from dry_cases import Case, logits_of

GOLDEN = Path(__file__).parents[1] / "golden" / "llama" / "dry.json"
# multiplier, base, allowed_length, last_n: DeepSeek-OCR-2's own first.
SETTINGS = (
    (0.8, 1.75, 2, 64), (0.8, 1.75, 2, 64), (0.8, 1.75, 2, 64), (0.8, 1.75, 2, 8),
    (0.8, 1.75, 1, 64), (0.8, 1.75, 5, 64), (1.3, 1.1, 2, 64), (0.3, 2.5, 0, 32),
    (0.8, 1.0, 2, 64), (0.8, 1.75, 2, 512), (2.0, 3.0, 3, 512),
)  # fmt: skip


class TokenData(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int32), ("logit", ctypes.c_float), ("p", ctypes.c_float))


class TokenDataArray(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.POINTER(TokenData)), ("size", ctypes.c_size_t),
        ("selected", ctypes.c_int64), ("sorted", ctypes.c_bool),
    )  # fmt: skip


def main(library: str, version: str) -> None:
    llama = open_library(library)
    cases = [record(llama, case) for case in make_cases()]
    text = ",\n".join(json.dumps(case) for case in cases)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(f'{{"made_by": "{version}", "cases": [\n{text}\n]}}\n', encoding="ascii")


def open_library(path: str) -> ctypes.CDLL:
    llama = ctypes.CDLL(path)
    llama.llama_sampler_init_dry.restype = ctypes.c_void_p
    llama.llama_sampler_init_dry.argtypes = [
        ctypes.c_void_p, ctypes.c_float, ctypes.c_float, ctypes.c_int32, ctypes.c_int32,
        ctypes.c_void_p, ctypes.c_size_t,
    ]  # fmt: skip
    llama.llama_sampler_accept.argtypes = [ctypes.c_void_p, ctypes.c_int32]
    llama.llama_sampler_apply.argtypes = [ctypes.c_void_p, ctypes.POINTER(TokenDataArray)]
    llama.llama_sampler_free.argtypes = [ctypes.c_void_p]
    return llama


def make_cases() -> list[Case]:
    source = random.Random(7)
    return [
        Case(*settings, vocab=vocab, seed=source.randrange(1 << 31), history=tuple(history))
        for settings in SETTINGS
        for vocab, history in histories(source)
    ]


def histories(source: random.Random) -> list[tuple[int, list[int]]]:
    """Short, random, with repeats of several lengths, with loops of one, two and twenty tokens."""
    few = [source.randrange(3) for _ in range(90)]
    line = [source.randrange(40) for _ in range(20)]
    row = [9, 11, 12, 10]
    return [
        (5, []), (5, [1]), (5, [2, 2]), (5, [2, 2, 2]), (5, [1] * 70), (3, few), (3, few[:37]),
        (40, line * 4), (40, line * 2 + line[:13]), (60, [*row, source.randrange(60)] * 12),
        (400, [source.randrange(400) for _ in range(200)]), (7, [1, 2] * 250),
        (12, [source.randrange(12) for _ in range(300)]),
    ]  # fmt: skip


def record(llama: ctypes.CDLL, case: Case) -> dict[str, Any]:
    logits_V = logits_of(case)
    data = (TokenData * case.vocab)(*((i, float(x), 0.0) for i, x in enumerate(logits_V)))
    array = TokenDataArray(data, case.vocab, -1, False)
    sampler = llama.llama_sampler_init_dry(
        None, case.multiplier, case.base, case.allowed_length, case.last_n, None, 0
    )
    for token in case.history:
        llama.llama_sampler_accept(sampler, token)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    llama.llama_sampler_free(sampler)
    after_V = np.zeros(case.vocab, np.float32)
    for entry in data:
        after_V[entry.id] = entry.logit
    changed = np.flatnonzero(after_V.view(np.uint32) != logits_V.view(np.uint32))
    bits = after_V.view(np.uint32)
    return case.as_json() | {"changed": [[int(i), int(bits[i])] for i in changed]}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
