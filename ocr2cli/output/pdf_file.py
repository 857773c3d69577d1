"""A small PDF writer: pages made of one JPEG and lines of invisible text, streamed to a file.

One page is held at a time and equal pages give equal bytes, which is why no library is used.
Knows nothing about documents, boxes or how a text is spread over a page.

Source: ISO 32000-1 (PDF 1.7), 7.5 file structure, 9.7 composite fonts, 9.10 ToUnicode.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ocr2cli.output.bidi import visual
from ocr2cli.output.folder import StagedWriter

# Objects with fixed numbers; pages take the numbers after them.
_CATALOG, _PAGES, _INFO, _FONT, _CID_FONT, _DESCRIPTOR, _FONT_FILE, _TO_UNICODE, _GIDS, _NOTE = (
    range(1, 11)
)
_ADVANCE = 0.5  # em, of every character of the invisible font
_MAX_CIDS = 65_535
# Points a side of a page may have: ISO 32000-1, annex C.
_MIN_SIDE, _MAX_SIDE = 3.0, 14_400.0


@dataclass(frozen=True, slots=True)
class TextLine:
    """One line of invisible text. x, y: left end of the baseline in points from the page's top
    left; width: what it is stretched to; size: font size; both in points. text: as it is read."""

    x: float
    y: float
    width: float
    size: float
    text: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The page's JPEG, in RGB or grey, and its size in pixels."""

    jpeg: bytes
    width: int
    height: int
    is_grey: bool


class PdfFile:
    """Writes pages as they come; `close` writes what the reader needs to find them."""

    def __init__(self, stream: StagedWriter, title: str, subject: str) -> None:
        self._stream = stream
        self._offsets: dict[int, int] = {}
        self._pages: list[int] = []
        self._next = _NOTE + 1
        self._cids: dict[str, int] = {}
        stream.write(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
        info = f"/Title {_text(title)} /Subject {_text(subject)} /Producer (ocr2)"
        self._write(_INFO, f"<< {info} >>".encode())

    def add_page(
        self,
        size: tuple[float, float],
        picture: Picture | None,
        lines: Iterable[TextLine] = (),
        note: Sequence[str] = (),
    ) -> None:
        """One page. size: see `page_size`. note: visible lines, where a page failed."""
        width, height = size
        page, content, image = self._next, self._next + 1, self._next + 2
        self._next += 3
        commands = [self._show(line, height) for line in lines]
        commands += _note(note, height)
        if picture:
            commands.insert(0, f"q {width:.2f} 0 0 {height:.2f} 0 0 cm /Im Do Q")
            self._write_picture(image, picture)
        self._write_stream(content, "", zlib.compress("\n".join(commands).encode()), is_flate=True)
        images = f"/XObject << /Im {image} 0 R >>" if picture else ""
        fonts = f"/Font << /Hidden {_FONT} 0 R /Note {_NOTE} 0 R >>"
        self._write(
            page,
            f"<< /Type /Page /Parent {_PAGES} 0 R /MediaBox [0 0 {width:.2f} {height:.2f}] "
            f"/Contents {content} 0 R /Resources << {fonts} {images} >> >>".encode(),
        )
        self._pages.append(page)

    def close(self) -> None:
        """The page tree, the fonts and the table of offsets."""
        kids = " ".join(f"{page} 0 R" for page in self._pages)
        self._write(_CATALOG, f"<< /Type /Catalog /Pages {_PAGES} 0 R >>".encode())
        self._write(_PAGES, f"<< /Type /Pages /Count {len(self._pages)} /Kids [{kids}] >>".encode())
        self._write_fonts()
        start = self._stream.size_bytes
        rows = ["0000000000 65535 f "]
        rows += [
            f"{self._offsets[n]:010d} 00000 n " if n in self._offsets else "0000000000 65535 f "
            for n in range(1, self._next)
        ]
        self._stream.write(f"xref\n0 {self._next}\n".encode() + "\n".join(rows).encode() + b"\n")
        trailer = f"<< /Size {self._next} /Root {_CATALOG} 0 R /Info {_INFO} 0 R >>"
        self._stream.write(f"trailer\n{trailer}\nstartxref\n{start}\n%%EOF\n".encode())

    def _show(self, line: TextLine, page_height: float) -> str:
        # As on paper: readers turn Hebrew and Arabic round again.
        codes = "".join(f"{self._cid(char):04x}" for char in visual(line.text))
        natural = max(len(line.text) * _ADVANCE * line.size, 0.01)
        stretch = 100 * line.width / natural
        return (
            f"BT 3 Tr /Hidden {line.size:.2f} Tf {stretch:.2f} Tz "
            f"1 0 0 1 {line.x:.2f} {page_height - line.y:.2f} Tm <{codes}> Tj ET"
        )

    def _cid(self, char: str) -> int:
        """The character's code in the invisible font, given out in order of first use."""
        if char not in self._cids and len(self._cids) < _MAX_CIDS:
            self._cids[char] = len(self._cids) + 1
        return self._cids.get(char, 0)

    def _write(self, number: int, body: bytes) -> None:
        self._offsets[number] = self._stream.size_bytes
        self._stream.write(b"%d 0 obj\n%b\nendobj\n" % (number, body))

    def _write_stream(self, number: int, entries: str, data: bytes, *, is_flate: bool) -> None:
        code = " /Filter /FlateDecode" if is_flate else ""
        head = f"<< {entries}{code} /Length {len(data)} >>\nstream\n".encode()
        self._write(number, head + data + b"\nendstream")

    def _write_picture(self, number: int, picture: Picture) -> None:
        space = "/DeviceGray" if picture.is_grey else "/DeviceRGB"
        entries = (
            f"/Type /XObject /Subtype /Image /Width {picture.width} /Height {picture.height} "
            f"/ColorSpace {space} /BitsPerComponent 8 /Filter /DCTDecode"
        )
        self._write_stream(number, entries, picture.jpeg, is_flate=False)

    def _write_fonts(self) -> None:
        """The invisible font: every code shows one empty glyph and means one character."""
        name = "/BaseFont /Invisible"
        self._write(
            _FONT,
            f"<< /Type /Font /Subtype /Type0 {name} /Encoding /Identity-H "
            f"/DescendantFonts [{_CID_FONT} 0 R] /ToUnicode {_TO_UNICODE} 0 R >>".encode(),
        )
        system = "<< /Registry (Adobe) /Ordering (Identity) /Supplement 0 >>"
        self._write(
            _CID_FONT,
            f"<< /Type /Font /Subtype /CIDFontType2 {name} /CIDSystemInfo {system} /DW 500 "
            f"/CIDToGIDMap {_GIDS} 0 R /FontDescriptor {_DESCRIPTOR} 0 R >>".encode(),
        )
        self._write(
            _DESCRIPTOR,
            "<< /Type /FontDescriptor /FontName /Invisible /Flags 5 /FontBBox [0 -200 500 800] "
            "/ItalicAngle 0 /Ascent 800 /Descent -200 /CapHeight 800 /StemV 80 "
            f"/FontFile2 {_FONT_FILE} 0 R >>".encode(),
        )
        font = empty_font()
        entries = f"/Length1 {len(font)}"
        self._write_stream(_FONT_FILE, entries, zlib.compress(font), is_flate=True)
        # Two zero bytes a code: all of them are glyph 0.
        self._write_stream(_GIDS, "", zlib.compress(bytes(2 * (_MAX_CIDS + 1))), is_flate=True)
        table = zlib.compress(to_unicode(self._cids).encode())
        self._write_stream(_TO_UNICODE, "", table, is_flate=True)
        self._write(_NOTE, b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")


def page_size(width: float, height: float) -> tuple[float, float]:
    """(width, height) in points that a PDF's page may have: smaller in one shape where a side is
    too long. Text is placed for this size."""
    factor = min(1.0, _MAX_SIDE / max(width, height))
    return max(_MIN_SIDE, width * factor), max(_MIN_SIDE, height * factor)


def to_unicode(cids: dict[str, int]) -> str:
    """The CMap that tells a reader which character each code is."""
    rows = [f"<{cid:04x}> <{char.encode('utf-16-be').hex()}>" for char, cid in cids.items()]
    blocks = [rows[start : start + 100] for start in range(0, len(rows), 100)]
    maps = "".join(
        f"{len(block)} beginbfchar\n" + "\n".join(block) + "\nendbfchar\n" for block in blocks
    )
    return (
        "/CIDInit /ProcSet findresource begin\n12 dict begin\nbegincmap\n"
        "/CIDSystemInfo << /Registry (Adobe) /Ordering (UCS) /Supplement 0 >> def\n"
        "/CMapName /Adobe-Identity-UCS def\n/CMapType 2 def\n"
        "1 begincodespacerange\n<0000> <ffff>\nendcodespacerange\n"
        f"{maps}endcmap\nCMapName currentdict /CMap defineresource pop\nend\nend\n"
    )


def empty_font() -> bytes:
    """A TrueType font with one empty glyph, half an em wide: 1000 units an em.

    Source: the OpenType specification's tables head, hhea, hmtx, loca, glyf, maxp.
    """
    tables = {
        b"glyf": b"\0\0\0\0",
        b"head": struct.pack(
            ">IIIIHHQQhhhhHHhhh", 0x10000, 0x10000, 0, 0x5F0F3CF5, 3, 1000, 0, 0,
            0, -200, 500, 800, 0, 8, 2, 0, 0,
        ),
        b"hhea": struct.pack(
            ">IhhhHhhhhhhhhhhhH", 0x10000, 800, -200, 0, 500, 0, 0, 500, 1, 0, 0, *[0] * 5, 1
        ),
        b"hmtx": struct.pack(">Hh", 500, 0),
        b"loca": struct.pack(">HH", 0, 0),
        b"maxp": struct.pack(">IHHHHHHHHHHHHHH", 0x10000, 1, 0, 0, 0, 0, 1, *[0] * 8),
    }  # fmt: skip
    font = _font_file(tables)
    adjustment = (0xB1B0AFBA - _checksum(font)) & 0xFFFFFFFF
    head = tables[b"head"]
    tables[b"head"] = head[:8] + struct.pack(">I", adjustment) + head[12:]
    return _font_file(tables)


def _font_file(tables: dict[bytes, bytes]) -> bytes:
    offset = 12 + 16 * len(tables)
    directory, body = struct.pack(">IHHHH", 0x10000, len(tables), 64, 2, 32), b""
    for tag, data in tables.items():
        padded = data + bytes(-len(data) % 4)
        # The head table's own sum counts its adjustment as zero.
        counted = padded[:8] + bytes(4) + padded[12:] if tag == b"head" else padded
        directory += struct.pack(">4sIII", tag, _checksum(counted), offset + len(body), len(data))
        body += padded
    return directory + body


def _checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f">{len(data) // 4}I", data)
    return sum(words) & 0xFFFFFFFF


def _note(lines: Sequence[str], page_height: float) -> list[str]:
    commands = []
    for index, line in enumerate(lines):
        safe = line.encode("ascii", "replace").decode()
        for char in "\\()":
            safe = safe.replace(char, "\\" + char)
        y = page_height - 72 - 16 * index
        commands.append(f"BT 0 Tr 100 Tz /Note 11 Tf 1 0 0 1 54 {y:.2f} Tm ({safe}) Tj ET")
    return commands


def _text(text: str) -> str:
    """A text string object, in UTF-16 with its mark."""
    return "<feff" + text.encode("utf-16-be", "replace").hex() + ">"
