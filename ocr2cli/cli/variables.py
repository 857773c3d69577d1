"""Variables of the environment that look like settings and are none: a misspelt one is told.

Told and not refused: an environment is shared by programs, and by versions of one, as a command
line is not. Knows nothing about commands and their options.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping

PREFIX = "OCR2_"
# What Kubernetes sets in every container for a service called ocr2, or ocr2-serve.
_OF_KUBERNETES = re.compile(r"OCR2_(\w+_)?(SERVICE_(HOST|PORT)|PORT_\d+_|PORT=\w+://)")
# How much of two words is the same; short ones are alike by chance, as DIR and DRY.
_ALIKE, _ALIKE_IF_SHORT = 0.6, 0.7
_SHORT = 4


def settings_in(environ: Mapping[str, str]) -> dict[str, str]:
    """Those that may be meant for ocr2, by name."""
    return {
        name: value
        for name, value in sorted(environ.items())
        if name.startswith(PREFIX) and not is_of_kubernetes(name, value)
    }


def is_of_kubernetes(name: str, value: str) -> bool:
    """Whether a variable is a service's, as OCR2_PORT is where it holds an address."""
    return bool(_OF_KUBERNETES.match(f"{name}={value}"))


def advice(name: str, known: Collection[str]) -> str:
    """What to write instead of a variable that is not among the known ones."""
    # Without the prefix, which would make all of them alike.
    word, words = name.removeprefix(PREFIX), sorted(each.removeprefix(PREFIX) for each in known)
    cutoff = _ALIKE_IF_SHORT if len(word) <= _SHORT else _ALIKE
    close = difflib.get_close_matches(word, words, n=1, cutoff=cutoff)
    if close:
        return f"did you mean {PREFIX}{close[0]}?"
    return "settings are named after flags, OCR2_DPI after --dpi"
