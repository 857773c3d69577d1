"""Packs fonts and texts for a machine that has neither packages nor a network, a lent GPU say.

    python -m nanotrain.luggage --out FILE.tar.xz
    there: tar -C / -xJf FILE.tar.xz && export PATH=/opt/nano-luggage:$PATH

Fonts are cut down to the characters that nano reads, 120 to 6 MB, and lie where they lay; each is
kept only if it draws the very same pixels. Their widths, which take half a minute to measure, come
along.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from fontTools import subset
from PIL import Image, ImageDraw, ImageFont

from nanotrain import texts
from nanotrain.characters import READABLE
from nanotrain.fonts import load_fonts

HOME = Path("/opt/nano-luggage")
# Stands in for fontconfig: the trainers ask it for the list of files alone.
_LISTER = '#!/bin/sh\ncat "$(dirname "$0")/list"\n'
_SAMPLE = 'The quick AVA To brown fox jumps 0123456789 (ffi) ° € "x"'


def cut_down(path: Path) -> bytes | None:
    """The font with what is read alone; None where it would draw anything differently, or is of a
    kind that cannot be cut."""
    options = subset.Options(
        legacy_kern=True, hinting=True, notdef_outline=True, layout_features=[],
        ignore_missing_unicodes=True, ignore_missing_glyphs=True,
    )  # fmt: skip
    try:
        font = subset.load_font(str(path), options)
        cutter = subset.Subsetter(options)
        cutter.populate(text=READABLE)
        cutter.subset(font)
        out = io.BytesIO()
        subset.save_font(font, out, options)
    except Exception:  # what fontTools raises on an odd file is not documented
        return None
    return out.getvalue() if _drawn(out.getvalue()) == _drawn(path.read_bytes()) else None


def _drawn(font: bytes) -> bytes:
    face = ImageFont.truetype(io.BytesIO(font), 37, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("L", (2400, 80))
    ImageDraw.Draw(image).text((4, 50), _SAMPLE, font=face, fill=255, anchor="ls")
    return image.tobytes()


def text_files() -> list[Path]:
    """What texts.py reads."""
    fortunes = [path for path in texts.FORTUNES.glob("*") if not path.suffix]
    found = [*fortunes, *texts.LICENSES.glob("*"), *texts.DICTIONARIES]
    return sorted(path for path in found if path.is_file())


def pack(out: Path) -> None:
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of each table it drops
    found = {Path(font.path) for held_out in (False, True) for font in load_fonts(held_out)}
    fonts = {path: data for path in sorted(found) if (data := cut_down(path)) is not None}
    listing = "".join(f"{path}\n" for path in fonts)
    with tarfile.open(out, "w:xz") as archive:
        for path, data in fonts.items():
            _add(archive, path, data)
        for path in text_files():
            _add(archive, path, path.read_bytes())
        _add(archive, HOME / "list", listing.encode())
        _add(archive, HOME / "fc-list", _LISTER.encode(), mode=0o755)
        for name, data in _measured(listing).items():
            _add(archive, Path(tempfile.gettempdir()) / name, data)
    print(f"{out}: {len(fonts)} of {len(found)} fonts, {out.stat().st_size / 1e6:.1f} MB")


def _measured(listing: str) -> dict[str, bytes]:
    """Files of widths for just this list of fonts, as the trainers will look for them: made by a
    fresh process that sees no other fonts."""
    code = "from nanotrain import fonts; fonts.load_fonts(False); fonts.load_fonts(True)"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "list").write_text(listing, "utf-8")
        (folder / "fc-list").write_text(_LISTER, "utf-8")
        (folder / "fc-list").chmod(0o755)
        places = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "TMPDIR": str(folder),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | places)
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*.npz"))}


def _add(archive: tarfile.TarFile, path: Path, data: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(str(path).lstrip("/"))
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    pack(parser.parse_args().out)


if __name__ == "__main__":
    main()
