"""Pages to pixels: image files of every odd kind."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ocr2cli.config import RasterConfig
from ocr2cli.document import tiff_errors
from ocr2cli.document.ink import is_blank
from ocr2cli.document.raster import page_estimate, render_page, text_layer
from ocr2cli.document.source import find_jobs
from ocr2cli.errors import PageFault
from ocr2cli.pages import PageImage, PageJob, PageKey

CFG = RasterConfig()
EXIF_ORIENTATION = 0x0112


def _jobs(path: Path) -> list[PageJob]:
    return list(find_jobs([str(path)], "", CFG, is_isolated=False))


def _render(path: Path, cfg: RasterConfig = CFG) -> PageImage:
    (job,) = _jobs(path)
    return render_page(job, cfg)


def _gradient(width: int = 40, height: int = 20) -> Image.Image:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[:, :, 0] = np.linspace(0, 255, width, dtype=np.uint8)
    rgb[:, :, 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    return Image.fromarray(rgb)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "lossless.webp"])
def test_lossless_formats_give_their_pixels(tmp_path: Path, name: str) -> None:
    image = _gradient()
    image.save(tmp_path / name, **({"lossless": True} if "webp" in name else {}))
    page = _render(tmp_path / name)
    assert np.array_equal(page.rgb, np.asarray(image)) and page.warnings == ()


@pytest.mark.parametrize("name", ["a.jpg", "a.gif"])
def test_lossy_formats_give_nearly_their_pixels(tmp_path: Path, name: str) -> None:
    _gradient().save(tmp_path / name)
    difference = _render(tmp_path / name).rgb.astype(int) - np.asarray(_gradient())
    assert np.abs(difference).mean() < 8


def test_each_frame_of_a_tiff_gives_its_own_pixels(tmp_path: Path) -> None:
    colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [Image.new("RGB", (10 + n, 10), color) for n, color in enumerate(colors)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    jobs = _jobs(tmp_path / "a.tif")
    for n in (2, 0, 1):  # workers may ask in any order
        page = render_page(jobs[n], CFG)
        assert page.rgb.shape == (10, 10 + n, 3) and tuple(page.rgb[0, 0]) == colors[n]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(_gradient())
    # What a camera stores so that each orientation shows the same picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    for name in ("a.png", "a.tif"):
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif)
        assert page_estimate(_jobs(tmp_path / name)[0], CFG) == (40, 20, 0)
        assert np.array_equal(_render(tmp_path / name).rgb, upright)


def test_black_text_on_a_transparent_ground_stays_readable(tmp_path: Path) -> None:
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.putpixel((5, 5), (0, 0, 0, 255))
    image.putpixel((6, 5), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    page = _render(tmp_path / "a.png")
    assert tuple(page.rgb[0, 0]) == (255, 255, 255) and tuple(page.rgb[5, 5]) == (0, 0, 0)
    assert 120 < page.rgb[5, 6, 0] < 135
    assert page.warnings == ("transparent image shown on white",)


@pytest.mark.parametrize("shade", [255, 240])
def test_light_text_on_a_transparent_ground_is_shown_on_black(tmp_path: Path, shade: int) -> None:
    """It was white on white: a blank page, of which nothing had been lost."""
    image = Image.new("RGBA", (400, 200), (255, 255, 255, 0))
    image.paste((shade, shade, shade, 255), (50, 50, 300, 60))
    image.save(tmp_path / "a.png")
    page = _render(tmp_path / "a.png")
    assert tuple(page.rgb[0, 0]) == (0, 0, 0) and tuple(page.rgb[55, 60]) == (shade,) * 3
    assert page.warnings == ("transparent image shown on black: on white nothing is to be seen",)
    assert not is_blank(page.rgb, CFG.blank_ink)


def test_a_transparent_image_that_shows_nothing_on_black_either_stays_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (400, 200), (255, 255, 255, 0))
    image.paste((255, 255, 255, 12), (50, 50, 300, 60))
    image.save(tmp_path / "a.png")
    page = _render(tmp_path / "a.png")
    assert page.rgb.min() == 255 and page.warnings == ("transparent image shown on white",)


def test_alpha_that_hides_nothing_changes_nothing(tmp_path: Path) -> None:
    image = _gradient()
    image.putalpha(255)
    image.save(tmp_path / "a.png")
    page = _render(tmp_path / "a.png")
    assert np.array_equal(page.rgb, np.asarray(_gradient())) and page.warnings == ()


def test_alpha_that_hides_everything_is_ignored(tmp_path: Path) -> None:
    image = _gradient()
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    page = _render(tmp_path / "a.png")
    assert np.array_equal(page.rgb, np.asarray(_gradient()))
    assert "transparency ignored" in page.warnings[0]


def test_transparency_of_palettes_and_grey_is_seen(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    grey = Image.new("LA", (8, 8), (0, 0))
    grey.putpixel((1, 1), (0, 255))
    grey.save(tmp_path / "la.png")
    palette.save(tmp_path / "g.gif", transparency=0)
    for name, ink in (("p.png", (200, 0, 0)), ("la.png", (0, 0, 0)), ("g.gif", (200, 0, 0))):
        page = _render(tmp_path / name)
        assert tuple(page.rgb[0, 0]) == (255, 255, 255), name
        assert tuple(page.rgb[1, 1]) == ink, name


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    white = Image.new("RGB", (16, 16), "white")
    ImageDraw.Draw(white).rectangle((4, 4, 11, 11), fill="black")
    if mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(white, srgb, lab, outputMode="LAB")
        assert image is not None
    else:
        image = white.convert(mode)
    image.save(tmp_path / "a.tif")
    page = _render(tmp_path / "a.tif")
    assert page.rgb[0, 0].min() > 245 and page.rgb[8, 8].max() < 40


def test_a_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert _render(tmp_path / "a.jpg").rgb.min() > 245


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(np.repeat(values, 4, axis=0)).save(tmp_path / name)
    assert _render(tmp_path / name).rgb[0, :, 0].tolist() == [0, 1, 128, 255]


WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def _grey_tiff(path: Path, row: list[int], *, bits: int, photometric: int) -> None:
    """One row of grey values, each in `bits` bits without gaps, as Pillow cannot write them."""
    packed = "".join(format(value, f"0{bits}b") for value in row)
    packed += "0" * (-len(packed) % 8)
    data = int(packed, 2).to_bytes(len(packed) // 8, "big")
    if bits == 16:
        data = np.array(row, "<u2").tobytes()
    start = 8 + 2 + 9 * 12 + 4
    tags = ((256, len(row)), (257, 1), (258, bits), (259, 1), (262, photometric), (273, start),
            (277, 1), (278, 1), (279, len(data)))  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(head + entries + struct.pack("<I", 0) + data)


def test_12_bit_grey_keeps_the_range_its_tiff_states(tmp_path: Path) -> None:
    row = [0, 1024, 2048, 4095]
    _grey_tiff(tmp_path / "a.tif", row, bits=12, photometric=BLACK_IS_ZERO)
    page = _render(tmp_path / "a.tif")
    assert page.rgb[0, :, 0].tolist() == [0, 64, 128, 255] and page.warnings == ()
    _grey_tiff(tmp_path / "dark.tif", [0, 8, 16, 32], bits=12, photometric=BLACK_IS_ZERO)
    assert _render(tmp_path / "dark.tif").rgb.max() == 2


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_scan_that_fills_a_part_of_its_16_bits_is_stretched_and_says_so(
    tmp_path: Path, name: str, bits: int
) -> None:
    values = np.array([[0, 2**bits // 4, 2**bits - 1]], np.uint16)
    Image.fromarray(values).save(tmp_path / name)
    page = _render(tmp_path / name)
    assert page.rgb[0, :, 0].tolist() == [0, 64, 255]
    assert page.warnings == (f"grey values 0 to {2**bits - 1:g} stretched to black and white",)


def test_16_bit_grey_that_reaches_a_quarter_of_its_range_or_is_all_one_value_is_not_stretched(
    tmp_path: Path,
) -> None:
    for row, expected in (([0, 2**14], [0, 64]), ([2571, 2571], [10, 10])):
        Image.fromarray(np.array([row], np.uint16)).save(tmp_path / "a.png")
        page = _render(tmp_path / "a.png")
        assert page.rgb[0, :, 0].tolist() == expected and page.warnings == ()


def test_deep_grey_of_which_zero_is_white_is_white_at_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    _grey_tiff(path, [0, 257, 65535], bits=16, photometric=WHITE_IS_ZERO)
    assert _render(path).rgb[0, :, 0].tolist() == [255, 254, 0]
    _grey_tiff(path, [0, 1024, 4095], bits=16, photometric=WHITE_IS_ZERO)
    assert _render(path).rgb[0, :, 0].tolist() == [255, 191, 0]
    # Pillow has inverted these already
    _grey_tiff(path, [0, 1, 255], bits=8, photometric=WHITE_IS_ZERO)
    assert _render(path).rgb[0, :, 0].tolist() == [255, 254, 0]


def test_float_and_32_bit_grey_are_stretched_and_say_so(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 3.0]], np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.array([[-100, 0, 300]], np.int32)).save(tmp_path / "i.tif")
    for name in ("f.tif", "i.tif"):
        page = _render(tmp_path / name)
        assert page.rgb[0, :, 0].tolist() == [0, 64, 255]
        assert "stretched" in page.warnings[0]


def test_a_large_image_is_made_smaller_and_says_so(tmp_path: Path) -> None:
    _gradient(400, 200).save(tmp_path / "a.png")
    page = _render(tmp_path / "a.png", RasterConfig(max_pixels=20_000))
    assert page.rgb.shape == (100, 200, 3)
    assert page.warnings == ("400x200 pixels made smaller, to 200x100",)


def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    Image.new("1", (10_000, 9_500)).save(tmp_path / "warned.png")
    for job in _jobs(tmp_path):
        assert job.error is not None and job.error.code == "too_large"
        assert "89,478,485 pixels" in job.error.message


def test_a_frame_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    small, bomb = Image.new("1", (10, 10)), Image.new("1", (10_000, 9_500))
    small.save(tmp_path / "a.tif", save_all=True, append_images=[bomb], compression="group4")
    first, second = _jobs(tmp_path / "a.tif")
    render_page(first, CFG)
    with pytest.raises(PageFault, match=r"page 2 of .*89,478,485 pixels") as caught:
        render_page(second, CFG)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"])
def test_a_truncated_image_is_one_error(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (job,) = _jobs(path)
    if job.error is None:
        with pytest.raises(PageFault, match="cannot be decoded") as caught:
            render_page(job, CFG)
        message = caught.value.message
    else:
        message = job.error.message
    assert name in message and "\n" not in message


def _damaged_fax(path: Path, image: Image.Image, at: int = 2) -> None:
    image.save(path, compression="group4")
    with Image.open(path) as tiff:
        start = tiff.tag_v2[273][0]  # type: ignore[attr-defined]
    content = bytearray(path.read_bytes())
    content[start + at] ^= 0xFF
    path.write_bytes(content)


def test_a_damaged_fax_says_so_each_time_and_libtiff_says_nothing_itself(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half of the page had gone, and its status was ok."""
    fax = Image.new("1", (800, 400), 1)
    ImageDraw.Draw(fax).text((20, 20), "The Harbour Ledger", fill=0)
    ImageDraw.Draw(fax).rectangle((40, 60, 700, 300), fill=0)
    _damaged_fax(tmp_path / "a.tif", fax)
    for _ in range(2):  # Pillow decodes it once
        page = _render(tmp_path / "a.tif")
        (note,) = page.warnings
        assert "is damaged" in note and "Bad code word" in note and note.isprintable()
        assert "Bad code word" in page.damage
    fax.save(tmp_path / "a.tif", compression="group4")
    page = _render(tmp_path / "a.tif")
    assert (page.warnings, page.damage) == ((), "")
    assert capfd.readouterr().err == ""


def test_a_damaged_fax_is_read_where_libtiff_cannot_be_listened_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiff_errors, "_set_handler", lambda: None)
    _damaged_fax(tmp_path / "a.tif", Image.new("1", (800, 400), 1))
    assert _render(tmp_path / "a.tif").rgb.shape == (400, 800, 3)


def _directories(content: bytes) -> list[tuple[int, int]]:
    """(start, place of the pointer to the next) of each of a little-endian TIFF's directories."""
    (at,) = struct.unpack_from("<I", content, 4)
    found = []
    while at:
        (num_entries,) = struct.unpack_from("<H", content, at)
        found.append((at, at + 2 + 12 * num_entries))
        (at,) = struct.unpack_from("<I", content, found[-1][1])
    return found


def _five_page_tiff(path: Path) -> bytearray:
    frames = [Image.new("L", (40, 20), 50 * n) for n in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return bytearray(path.read_bytes())


def _set_tag(content: bytearray, directory: int, tag: int, value: int) -> None:
    start, end = _directories(content)[directory]
    for at in range(start + 2, end, 12):
        if struct.unpack_from("<H", content, at)[0] == tag:
            struct.pack_into("<I", content, at + 8, value)


def _shades(jobs: list[PageJob]) -> list[int | str]:
    """The grey of each page, or why it has none."""
    shades: list[int | str] = []
    for job in jobs:
        try:
            shades.append(int(render_page(job, CFG).rgb[0, 0, 0]))
        except PageFault as fault:
            assert fault.code == "unreadable" and f"page {job.key.page + 1} of " in fault.message
            shades.append(fault.message)
    return shades


@pytest.mark.parametrize("way", ["cut between pages", "cut in a directory", "a wild pointer"])
def test_a_tiff_that_ends_too_early_keeps_the_pages_before(tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.tif"
    content = _five_page_tiff(path)
    start, _ = _directories(content)[3]
    if way == "a wild pointer":
        struct.pack_into("<I", content, _directories(content)[2][1], len(content) + 99)
    else:
        content = content[: start + 40 if way == "cut in a directory" else start]
    path.write_bytes(content)
    jobs = _jobs(path)
    *whole, broken = _shades(jobs)
    assert whole == [0, 50, 100]
    assert "the file ends or is damaged here" in str(broken)
    assert "came after it is lost" in str(broken)
    assert _shades(jobs[::-1]) == [broken, 100, 50, 0]


@pytest.mark.parametrize(("tag", "value"), [(258, 7), (259, 34712), (262, 77)])
def test_a_tiff_page_of_a_kind_that_cannot_be_read_costs_no_other_page(
    tmp_path: Path, tag: int, value: int
) -> None:
    path = tmp_path / "a.tif"
    content = _five_page_tiff(path)
    _set_tag(content, 2, tag, value)
    path.write_bytes(content)
    jobs = _jobs(path)
    first, second, third, *rest = _shades(jobs)
    assert [first, second, *rest] == [0, 50, 150, 200]
    assert "cannot be decoded" in str(third) and "lost" not in str(third)
    with pytest.raises(PageFault, match="page 3 of"):  # asked for again, it is still not there
        render_page(jobs[2], CFG)
    with pytest.raises(PageFault, match="page 3 of"):
        page_estimate(jobs[2], CFG)


def test_a_tiff_whose_pages_lead_back_to_an_earlier_one_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    content = _five_page_tiff(path)
    (first, _), _, (_, pointer), *_ = _directories(content)
    struct.pack_into("<I", content, pointer, first)
    path.write_bytes(content)
    assert _shades(_jobs(path)) == [0, 50, 100]


def test_a_format_outside_the_list_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "a.ppm")
    Image.new("RGB", (5, 5)).save(tmp_path / "b.ico")
    for name in ("a.ppm", "b.ico"):
        (job,) = _jobs(tmp_path / name)
        assert job.error is not None and job.error.code == "unsupported"


def test_the_resolution_of_the_file_is_kept(tmp_path: Path) -> None:
    _gradient().save(tmp_path / "a.jpg", dpi=(300, 300))
    _gradient().save(tmp_path / "b.jpg")
    assert _render(tmp_path / "a.jpg").dpi == 300 and _render(tmp_path / "b.jpg").dpi == 72


def test_an_image_made_smaller_stays_as_large_in_print(tmp_path: Path) -> None:
    _gradient().resize((400, 300)).save(tmp_path / "a.png", dpi=(200, 200))
    image = _render(tmp_path / "a.png", RasterConfig(max_pixels=30_000))
    assert image.rgb.shape == (150, 200, 3) and image.dpi == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("name", ["a.tif", "a.png"])
def test_a_fax_of_half_resolution_gets_square_pixels_and_says_so(tmp_path: Path, name: str) -> None:
    fax = Image.new("1", (172, 108), 1)
    ImageDraw.Draw(fax).rectangle((40, 20, 120, 60), fill=0)
    fax.save(tmp_path / name, dpi=(204, 98))
    page = _render(tmp_path / name)
    assert page.rgb.shape == (225, 172, 3) and page.dpi == pytest.approx(204, abs=0.1)
    assert page.rgb[100, 80].max() == 0 and page.rgb[150, 80].min() == 255
    (note,) = page.warnings
    assert "made 172x225 of 172x108 pixels" in note and "98 dpi" in note
    assert page_estimate(_jobs(tmp_path / name)[0], CFG)[:2] == (172, 225)


@pytest.mark.parametrize(
    ("name", "how"), [("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"}), ("a.png", {})]
)
def test_a_fax_on_its_side_is_stretched_the_right_way(
    tmp_path: Path, name: str, how: dict[str, str]
) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("L", (108, 172), 255).save(tmp_path / name, dpi=(98, 204), exif=exif, **how)
    (job,) = _jobs(tmp_path / name)
    for _ in range(2):  # Pillow forgets the orientation of a TIFF that it has loaded
        assert page_estimate(job, CFG)[:2] == (172, 225)
        assert render_page(job, CFG).rgb.shape == (225, 172, 3)


@pytest.mark.parametrize("dpi", [(204, 196), (300, 300), (300, 72)])
def test_a_resolution_that_is_square_or_a_mistake_changes_no_pixel(
    tmp_path: Path, dpi: tuple[int, int]
) -> None:
    _gradient().save(tmp_path / "a.tif", dpi=dpi)
    page = _render(tmp_path / "a.tif")
    assert page.rgb.shape == (20, 40, 3) and page.dpi == dpi[0] and page.warnings == ()


def test_square_pixels_stay_below_the_pixel_limit(tmp_path: Path) -> None:
    _gradient(400, 200).save(tmp_path / "a.png", dpi=(200, 100))
    cfg = RasterConfig(max_pixels=100_000)
    page = _render(tmp_path / "a.png", cfg)
    assert page.rgb.shape == (200, 200, 3) and page.dpi == pytest.approx(100, abs=0.1)


@pytest.mark.parametrize(
    ("name", "how"), [("a.png", {}), ("a.webp", {}), ("a.gif", {}), ("a.jpg", {"format": "MPO"})]
)
def test_pictures_that_are_not_read_are_told_of(
    tmp_path: Path, name: str, how: dict[str, str]
) -> None:
    frames = [Image.new("RGB", (40, 20), color) for color in ("white", "red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **how)
    (job,) = _jobs(tmp_path / name)
    for _ in range(2):
        page = render_page(job, CFG)
        assert page.rgb.min() > 250
        assert page.warnings == ("the file holds more pictures; only the first is read",)


def test_a_gif_whose_second_picture_is_damaged_still_gives_its_first(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [Image.new("RGB", (40, 20), color) for color in ("white", "red")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    second = content.rindex(b"\x21\xf9")
    (tmp_path / "whole.gif").write_bytes(content[:second] + b";")
    for end in range(second, len(content)):
        path.write_bytes(content[:end])
        (job,) = _jobs(path)
        for _ in range(2):
            assert render_page(job, CFG).rgb.min() > 250, end
    assert _render(tmp_path / "whole.gif").warnings == ()


def test_an_image_has_no_text_layer(tmp_path: Path) -> None:
    _gradient().save(tmp_path / "a.png")
    assert text_layer(_jobs(tmp_path / "a.png")[0], CFG) == ""


def test_heic_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    (job,) = _jobs(tmp_path / "a.heic")
    assert job.error is not None and job.error.code == "unsupported"
    assert "'.[heic]'" in job.error.message


def test_a_page_that_an_image_does_not_have_is_named_as_such(tmp_path: Path) -> None:
    _gradient().save(tmp_path / "a.png")
    (job,) = _jobs(tmp_path / "a.png")
    beyond = replace(job, key=PageKey("a", 1))
    for look in (render_page, page_estimate):
        with pytest.raises(PageFault, match=r"a\.png has no page 2, only 1\. Give a smaller"):
            look(beyond, CFG)
