"""The characters nano can read, the classes of the eyes' labels, and the tokenizer's vocabulary.

Knows nothing about pages or tensors.
"""

from __future__ import annotations

ASCII = "".join(chr(code) for code in range(32, 127))
QUOTES = "\u2018\u2019\u201c\u201d"
DASHES = "\u2013\u2014"
MARKS = "\u2026\u2022\u00a9\u00ae\u00b0\u00a7\u00b1\u00d7\u00b7\u00ab\u00bb\u00a3\u20ac\u00bd\u2122"
LETTERS = "".join(
    chr(code)
    for code in range(0xC0, 0x100)
    if code not in (0xC3, 0xD0, 0xD5, 0xD7, 0xDD, 0xDE, 0xF0, 0xF7, 0xFD, 0xFE)
)
BEYOND_ASCII = QUOTES + DASHES + MARKS + LETTERS
READABLE = ASCII + BEYOND_ASCII

# Classes of a label: 0 nothing, 1 text too small to read, 2 before a line, 3 after a line,
# then the readable characters.
BLANK, TINY, LINE_START, LINE_END = range(4)
CLASS_OF = {char: 4 + index for index, char in enumerate(READABLE)}
NUM_CLASSES = 192  # room to grow, and a multiple of 32
