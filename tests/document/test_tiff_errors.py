"""libtiff has one handler of errors a process: it is lent for a block and given back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest

from ocr2cli.document import tiff_errors


@pytest.fixture
def set_handler() -> Callable[[object], object]:
    function = tiff_errors._set_handler()
    if function is None:
        pytest.skip("Pillow's libtiff is out of reach here")
    return function


def test_whoever_listened_before_listens_again_afterwards(
    set_handler: Callable[[object], object],
) -> None:
    before = set_handler(None)
    try:
        with pytest.raises(ZeroDivisionError), tiff_errors.tiff_errors():
            raise ZeroDivisionError
        assert set_handler(None) is None, "also where decoding failed"
    finally:
        set_handler(before)


def test_what_is_said_names_who_said_it_and_is_kept_up_to_a_limit(
    set_handler: Callable[[object], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged fax of a meter has an error a row."""
    monkeypatch.setattr(tiff_errors, "_MAX_KEPT", 3)
    no_values = ctypes.create_string_buffer(64)  # in place of a va_list that nothing is taken from
    with tiff_errors.tiff_errors() as said:
        for module in (b"Fax4Decode", None, b"third", b"fourth", b"fifth"):
            tiff_errors._handler(module, b"bad \xff word", ctypes.addressof(no_values))
    assert said == ["Fax4Decode: bad \ufffd word", "libtiff: bad \ufffd word",
                    "third: bad \ufffd word"]  # fmt: skip
