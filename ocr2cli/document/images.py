"""Image files to pixels: Pillow behind an allow-list, with its limits turned into faults.

Knows nothing about PDF, dpi choices or views.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ocr2cli.config import RasterConfig
from ocr2cli.document.files import InputFile, Kind, shown
from ocr2cli.document.ink import is_blank
from ocr2cli.document.tiff_errors import tiff_errors
from ocr2cli.errors import PageFault, extra_hint
from ocr2cli.pages import Uint8Array

if TYPE_CHECKING:
    from PIL import Image

# Nothing else is opened, whatever Pillow could do: each format is code that parses hostile bytes.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
HEIF_FORMATS = ("HEIF",)

# The resolution of a file that does not tell it.
UNKNOWN_DPI = 72.0

# A fax has half as many rows as columns to the inch, and letters of half their height. Within 5 %
# nobody sees it; a resolution more lopsided than any fax is a mistake of the file's.
_MIN_STRETCH, _MAX_STRETCH = 1.05, 3.0

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS_ORIENTATIONS = range(5, 9)

_TIFF_SIZE = (256, 257)
_TIFF_BITS = 258
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0
# Below a quarter of 16 bits, the values are those of a scanner with 10 to 14.
_FULL_RANGE = 2**14


class ImageDocument:
    """An open image file. Pages are a TIFF's frames; every other format has one."""

    def __init__(self, source: InputFile, kind: Kind) -> None:
        self._path = source.path
        stream: IO[bytes] = io.BytesIO(source.read()) if source.is_small else source.file
        self._image: Image.Image = _open(stream, source.path, kind)
        self._broken: dict[int, Exception] = {}
        self._damage: dict[int, list[str]] = {}
        self.num_pages = self._count_frames()

    def render(
        self, page: int, dpi: float, max_pixels: int
    ) -> tuple[Uint8Array, float, list[str], str]:
        """(uint8 [H, W, 3] upright, the file's own dpi, notes, what was lost of the page or "").

        `dpi` is for PDFs; unused here. Of a damaged fax what was decoded is given. Any other image
        is an error where its decoder meets the damage; inside a JPEG, say, it may meet none.

        Raises: PageFault unreadable, too_large or unsupported.
        """
        from PIL import ImageOps

        notes: list[str] = []
        try:
            image = self._frame(page)
            resolution = _resolution(image)
            tags = _tiff_tags(image)  # an image that is turned has lost them
            with _bombs_are_errors():
                damage = self._load(page)
                image = ImageOps.exif_transpose(image)
            whole = _to_rgb(image, tags, notes)
            whole, own_dpi = _make_square(whole, resolution, max_pixels, notes)
            image = _shrink(whole, max_pixels, notes)
            own_dpi *= max(image.size) / max(whole.size)
            if self._has_more_pictures():
                notes.append("the file holds more pictures; only the first is read")
            if damage:
                more = f", and {len(damage) - 1} more" if len(damage) > 1 else ""
                notes.append(f"the page is damaged, and part of it may be lost ({damage[0]}{more})")
        except PageFault:
            raise
        except Exception as error:  # Pillow's plugins raise whatever their parsing runs into
            raise _unreadable(self._path, page, error) from error
        return np.asarray(image), own_dpi, notes, damage[0] if damage else ""

    def size(self, page: int, dpi: float, max_pixels: int) -> tuple[int, int]:
        """(width, height) in pixels, upright, without decoding. Raises: PageFault."""
        try:
            image = self._frame(page)
            with _bombs_are_errors():
                size, resolution = _upright_size(image), _resolution(image)
        except PageFault:
            raise
        except Exception as error:  # as in render
            raise _unreadable(self._path, page, error) from error
        return _square_size(size, resolution, max_pixels)[0]

    def text(self, page: int) -> str:
        """An image has no text layer."""
        return ""

    def close(self) -> None:
        self._image.close()

    def _load(self, page: int) -> list[str]:
        """Decodes the frame that Pillow is at; what libtiff complained of, also of a frame that
        is decoded already."""
        with tiff_errors() as said:
            self._image.load()
        if said:
            self._damage[page] = said
        return self._damage.get(page, [])

    def _has_more_pictures(self) -> bool:
        """True for an animation, or a photograph with its preview. After the first is decoded:
        for a GIF this looks for the second, and may run into what is wrong with it."""
        if self._image.format == "TIFF":
            return False
        with contextlib.suppress(Exception), _bombs_are_errors():
            return bool(getattr(self._image, "is_animated", False))
        return False

    def _frame(self, page: int) -> Image.Image:
        # Pillow would take this frame for open already, and give another's pixels.
        if page in self._broken:
            raise self._broken_frame(page)
        with _bombs_are_errors():
            self._image.seek(page)
        return self._image

    def _count_frames(self) -> int:
        """The frames that a TIFF leads to, with those that cannot be read: `n_frames` of a file
        whose last is damaged raises, and says nothing of the others."""
        frame = 0
        while self._image.format == "TIFF":
            frame += 1
            try:
                self._frame(frame)
            except Exception as error:  # as in render
                is_there = self._image.tell() == frame
                if isinstance(error, EOFError) and not is_there:
                    return frame
                self._broken[frame] = error
                if not is_there:  # nor does anything lead on from it
                    return frame + 1
        return 1

    def _broken_frame(self, page: int) -> PageFault:
        error = self._broken[page]
        rest = " What came after it is lost." if page == self.num_pages - 1 else ""
        return PageFault(
            "unreadable",
            f"page {page + 1} of {shown(self._path)} cannot be decoded: the file ends or is "
            "damaged here, or the page is of a kind that cannot be read "
            f"({_reason(error)}).{rest} Copy the file again.",
        )


def _open(stream: IO[bytes], path: str, kind: Kind) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    if kind is Kind.HEIF:
        _register_heif(path)
    stream.seek(0)
    try:
        with _bombs_are_errors():
            return Image.open(stream, formats=HEIF_FORMATS if kind is Kind.HEIF else FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PageFault(
            "too_large",
            f"{shown(path)} has more than {Image.MAX_IMAGE_PIXELS:,} pixels. Make it smaller.",
        ) from error
    except UnidentifiedImageError as error:
        raise PageFault(
            "unreadable", f"{shown(path)} is damaged from its first bytes on. Copy the file again."
        ) from error
    except Exception as error:  # as in render
        raise _unreadable(path, 0, error) from error


@contextlib.contextmanager
def _bombs_are_errors() -> Iterator[None]:
    """Too many pixels raise; Pillow's other warnings, about odd metadata, are not for users."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _register_heif(path: str) -> None:
    try:
        import pi_heif
    except ImportError as error:
        raise PageFault(
            "unsupported",
            f"{shown(path)} is HEIC, which needs an extra package. {extra_hint('heic')}",
        ) from error
    pi_heif.register_heif_opener()


def _tiff_tags(image: Image.Image) -> Mapping[int, object]:
    """The frame's tags by number; empty for all other formats."""
    return dict(getattr(image, "tag_v2", {}))


def _to_rgb(image: Image.Image, tags: Mapping[int, object], notes: list[str]) -> Image.Image:
    """RGB; alpha composited on a plain ground where the image really is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image, tags, notes)
    if image.mode in ("LA", "La", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return _composite(image, notes)
    return image if image.mode == "RGB" else image.convert("RGB")


def _composite(image: Image.Image, notes: list[str]) -> Image.Image:
    lowest, highest = image.getchannel("A").getextrema()
    if lowest == 255:
        return image.convert("RGB")
    if highest == 0:
        # Every pixel invisible: a writer that left alpha out, not an empty page.
        notes.append("the whole image is marked transparent; transparency ignored")
        return image.convert("RGB")
    # The reference drops alpha: black text on a transparent ground would be black on black.
    on_white = _on_ground("white", image)
    if _is_empty(on_white) and not _is_empty(on_black := _on_ground("black", image)):
        notes.append("transparent image shown on black: on white nothing is to be seen")
        return on_black
    notes.append("transparent image shown on white")
    return on_white


def _on_ground(colour: str, image: Image.Image) -> Image.Image:
    from PIL import Image

    ground = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(ground, image).convert("RGB")


def _is_empty(image: Image.Image) -> bool:
    return is_blank(np.asarray(image), RasterConfig().blank_ink)


def _deep_grey_to_rgb(
    image: Image.Image, tags: Mapping[int, object], notes: list[str]
) -> Image.Image:
    """16-bit grey keeps its range, or the one its TIFF states; all else is stretched.

    Stretched from darkest to lightest: 32-bit and float grey, and what uses little of 16 bits.
    """
    from PIL import Image

    values = np.asarray(image)
    is_16_bit = values.dtype.kind == "u" and values.dtype.itemsize == 2
    if is_16_bit or (image.mode == "I" and values.min() >= 0 and 255 < values.max() <= 65535):
        white = _stated_white(tags)
        # 12 bits in 16, which nothing states, would be black on black, and taken for empty
        is_stretched = white == 65535 and values.min() < values.max() < _FULL_RANGE
    else:
        white, is_stretched = 65535, True
    grey = _stretch(values, notes) if is_stretched else values.astype(np.float64) * 255 / white
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow inverts up to 8 bits and leaves deeper ones as stored
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _stated_white(tags: Mapping[int, object]) -> int:
    """The largest value that a TIFF's number of bits allows; 16 bits where it states no fewer."""
    stated = tags.get(_TIFF_BITS)
    bits = stated[0] if isinstance(stated, tuple) and stated else stated
    return 2**bits - 1 if isinstance(bits, int) and 8 < bits < 16 else 65535


def _stretch(values: npt.NDArray[Any], notes: list[str]) -> npt.NDArray[np.float64]:
    """0 to 255, from darkest to lightest; 0 where all are equal."""
    finite = np.where(np.isfinite(values), values, 0).astype(np.float64)
    low, high = float(finite.min()), float(finite.max())
    notes.append(f"grey values {low:g} to {high:g} stretched to black and white")
    stretched: npt.NDArray[np.float64] = (finite - low) * (255 / (high - low) if high > low else 0)
    return stretched


def _shrink(image: Image.Image, max_pixels: int, notes: list[str]) -> Image.Image:
    from PIL import Image

    width, height = image.size
    if width * height <= max_pixels:
        return image
    factor = (max_pixels / (width * height)) ** 0.5
    size = (max(1, int(width * factor)), max(1, int(height * factor)))
    notes.append(f"{width}x{height} pixels made smaller, to {size[0]}x{size[1]}")
    return image.resize(size, Image.Resampling.BICUBIC)


def _make_square(
    image: Image.Image, resolution: tuple[float, float], max_pixels: int, notes: list[str]
) -> tuple[Image.Image, float]:
    """The image with square pixels, and its dpi."""
    from PIL import Image

    size, dpi = _square_size(image.size, resolution, max_pixels)
    if size != image.size:
        notes.append(
            f"made {size[0]}x{size[1]} of {image.width}x{image.height} pixels: it has "
            f"{resolution[0]:.0f} dpi across and {resolution[1]:.0f} dpi down"
        )
        image = image.resize(size, Image.Resampling.BICUBIC)
    return image, dpi


def _square_size(
    size: tuple[int, int], resolution: tuple[float, float], max_pixels: int
) -> tuple[tuple[int, int], float]:
    """((width, height), dpi): at the higher of both resolutions, unless that is over the limit."""
    low, high = sorted(resolution)
    if not _MIN_STRETCH < high / low <= _MAX_STRETCH:
        return size, resolution[0]
    (width, height), (across, down) = size, resolution
    for dpi in (high, low):
        square = (max(1, round(width * dpi / across)), max(1, round(height * dpi / down)))
        if square[0] * square[1] <= max_pixels:
            break
    return square, dpi


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # Pillow turns a TIFF by itself, and gives its upright size from the beginning.
    is_stored_size = image.format != "TIFF" and _is_sideways(image)
    return image.size[::-1] if is_stored_size else image.size


def _is_sideways(image: Image.Image) -> bool:
    """True when rows of the file are columns of the upright page."""
    if tags := _tiff_tags(image):  # a TIFF that is loaded has lost its orientation
        return tuple(tags.get(side) for side in _TIFF_SIZE) != image.size
    return image.getexif().get(_EXIF_ORIENTATION, 1) in _SIDEWAYS_ORIENTATIONS


def _resolution(image: Image.Image) -> tuple[float, float]:
    """Dots per inch of the upright page, (across, down)."""
    try:
        across, down = (float(dpi) for dpi in image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        across = down = UNKNOWN_DPI
    if not (10 <= across <= 10_000 and 10 <= down <= 10_000):
        across = down = UNKNOWN_DPI
    return (down, across) if _is_sideways(image) else (across, down)


def _unreadable(path: str, page: int, error: Exception) -> PageFault:
    from PIL import Image

    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return PageFault(
            "too_large",
            f"page {page + 1} of {shown(path)} has more than {Image.MAX_IMAGE_PIXELS:,} pixels. "
            "Make it smaller.",
        )
    return PageFault(
        "unreadable",
        f"page {page + 1} of {shown(path)} cannot be decoded: {_reason(error)}. "
        "Copy the file again.",
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
