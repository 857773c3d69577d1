"""What travels to a machine without packages draws what it draws here."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

FONTS = Path(matplotlib.get_data_path()) / "fonts/ttf"


@pytest.mark.parametrize("name", ["DejaVuSans.ttf", "DejaVuSerif-BoldItalic.ttf"])
def test_a_font_cut_down_draws_the_same_and_is_a_fraction(name: str) -> None:
    from nanotrain.luggage import cut_down

    small = cut_down(FONTS / name)
    assert small is not None and 4 * len(small) < (FONTS / name).stat().st_size


def test_a_font_that_cannot_be_cut_stays_at_home(tmp_path: Path) -> None:
    from nanotrain.luggage import cut_down

    (tmp_path / "odd.ttf").write_bytes(b"no font at all")
    assert cut_down(tmp_path / "odd.ttf") is None


def test_a_font_that_would_draw_otherwise_stays_at_home(monkeypatch) -> None:
    from nanotrain import luggage

    monkeypatch.setattr(luggage, "READABLE", "abc")
    assert luggage.cut_down(FONTS / "DejaVuSans.ttf") is None
