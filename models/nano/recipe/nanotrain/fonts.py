"""Which font files the pages use, split by family into training and held-out fonts.

Knows nothing about pages. Advance widths are measured once per font and kept in em.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nanotrain.characters import READABLE

# Whole families never trained on. A family's siblings (metric clones, other cuts) go with it.
HELD_OUT = (
    "carlito",
    "caladea",
    "gentium",
    "opensans",
    "libertine",
    "firasans",
    "cabin",
    "texgyrebonum",
    "bookman",
    "andika",
)
REFUSED = (
    "emoji",
    "symbol",
    "dingbat",
    "math",
    "braille",
    "script",
    "chancery",
    "chorus",
    "junicode",
    "icons",
    "standardsymbols",
    "z003",
    "d050000l",
    "opensymbol",
    "italic-bold",
    "smallcaps",
    "smcp",
    "caps",
    "inlin",
    "outline",
    "shadow",
    "keyboard",
    "initials",
    # Lower case drawn as capitals, or program code drawn as signs.
    "bebas",
    "monoisome",
    # Letters in the shape of others, small capitals for lower case, letters that are not all there.
    "ellen",
    "elleb",
    "adfstyle",
    "titling",
    "solothurn",
    "museum",
    "lobster",
    "biolinum_k",
)
_SCRIPTS_KEPT = ("NotoSans-", "NotoSerif-", "NotoSansMono", "NotoSansDisplay", "NotoSerifDisplay")
_MEASURE = 200


@dataclass(frozen=True, eq=False)
class Font:
    """A font file. advances: float32 [len(READABLE)] in em, 0 where the glyph is missing."""

    path: str
    family: str
    advances: np.ndarray
    ascent: float
    is_held_out: bool


def _is_wanted(path: Path) -> bool:
    name = path.name.lower()
    if path.suffix.lower() not in (".ttf", ".otf", ".t1"):
        return False
    if any(word in name for word in REFUSED):
        return False
    return not path.name.startswith("Noto") or path.name.startswith(_SCRIPTS_KEPT)


def family_of(path: Path) -> str:
    """'DejaVuSans-Bold.ttf' -> 'dejavusans'; the many Computer Modern cuts count as two."""
    stem = path.stem.lower().replace("_", "-").split("-")[0].replace(" ", "")
    if stem.startswith(("cmun", "lm")):
        return "cmun" if stem.startswith("cmun") else "lm"
    return re.sub(r"(bold|oblique|italic|[0-9])+", "", stem)


@lru_cache(maxsize=8)
def _by_family(fonts: tuple[Font, ...]) -> tuple[tuple[Font, ...], ...]:
    families: dict[str, list[Font]] = {}
    for font in fonts:
        families.setdefault(font.family, []).append(font)
    return tuple(tuple(members) for members in families.values())


# Round 1 trains on ordinary upright faces; the rest waits for more compute.
_EXTRAORDINARY = re.compile(
    r"italic|oblique|slant|condensed|narrow|cn-|light|thin|black|hairline|ultra|medium|"
    r"semibold|extra|heavy|display|unsl|dosis|jura|comfortaa|quicksand|leaguespartan|play|"
    r"oldstandard|urwgothic|adventor|tuffy|artemisia|monoid|mononoki|inconsolata|firacode|"
    r"lmmono|lmroman[5-9]|lmromandemi|lmsans[89]|lmsansquot|lmsansdemi|cmun(?!rm|bx|ss|sx)",
)


@lru_cache(maxsize=4)
def ordinary(fonts: tuple[Font, ...]) -> tuple[Font, ...]:
    """Those of the fonts that books, letters and slides are usually set in."""
    return tuple(f for f in fonts if not _EXTRAORDINARY.search(Path(f.path).name.lower()))


def pick_font(rng: Random, fonts: tuple[Font, ...]) -> Font:
    """Every family equally often, whatever its number of cuts."""
    return rng.choice(rng.choice(_by_family(fonts)))


@lru_cache(maxsize=2)
def load_fonts(held_out: bool) -> tuple[Font, ...]:
    """Every usable font of the split, sorted by path. Raises: RuntimeError when there is none."""
    listing = subprocess.run(
        ["fc-list", "--format", "%{file}\n"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    fonts = _cached(listing, held_out)
    if not fonts:
        raise RuntimeError(
            "no fonts found. Install them with `make -C models/nano/recipe packages`"
        )
    return fonts


def _cached(listing: list[str], held_out: bool) -> tuple[Font, ...]:
    """Measuring takes half a minute, so the result is kept for this user, by list of files."""
    key = hashlib.sha256(
        repr((listing, held_out, HELD_OUT, REFUSED, READABLE)).encode()
    ).hexdigest()
    kept = Path(tempfile.gettempdir()) / f"nano-fonts-{os.getuid()}-{key[:16]}.npz"
    if kept.exists():
        return _read(kept)
    fonts = _measure_all(listing, held_out)
    partial = kept.with_suffix(f".{os.getpid()}.npz")
    np.savez(
        partial,
        path=[f.path for f in fonts],
        family=[f.family for f in fonts],
        advances=np.array([f.advances for f in fonts]),
        ascent=[f.ascent for f in fonts],
        held_out=held_out,
    )
    partial.replace(kept)
    return fonts


def _read(kept: Path) -> tuple[Font, ...]:
    with np.load(kept, allow_pickle=False) as data:
        rows = zip(data["path"], data["family"], data["advances"], data["ascent"], strict=True)
        return tuple(
            Font(str(p), str(f), a, float(s), bool(data["held_out"])) for p, f, a, s in rows
        )


def _measure_all(listing: list[str], held_out: bool) -> tuple[Font, ...]:
    return tuple(
        font
        for line in sorted({line for line in listing if line})
        if _is_wanted(Path(line)) and _is_held_out(Path(line)) == held_out
        if (font := _measure(Path(line))) is not None
    )


def _is_held_out(path: Path) -> bool:
    plain = str(path).lower().replace("-", "").replace("_", "").replace(" ", "")
    return any(word in plain for word in HELD_OUT)


def _measure(path: Path) -> Font | None:
    try:
        font = ImageFont.truetype(str(path), _MEASURE, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return None
    missing = _picture(font, "\uffff")
    advances = np.zeros(len(READABLE), np.float32)
    for index, char in enumerate(READABLE):
        if char == " " or (_picture(font, char) != missing):
            advances[index] = font.getlength(char) / _MEASURE
    if (advances[:95] <= 0).any() or font.getmetrics()[0] > 1.6 * _MEASURE:
        return None
    return Font(
        str(path), family_of(path), advances, font.getmetrics()[0] / _MEASURE, _is_held_out(path)
    )


def _picture(font: ImageFont.FreeTypeFont, char: str) -> bytes:
    canvas = Image.new("L", (64, 64))
    small = font.font_variant(size=40)
    ImageDraw.Draw(canvas).text((4, 4), char, font=small, fill=255)
    return canvas.tobytes()


@lru_cache(maxsize=512)
def pil_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
