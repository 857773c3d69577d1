"""Which characters of a text layer does no one see? Knows nothing about their shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ocr2cli.document.ink import MIN_CONTRAST
from ocr2cli.document.letters import runs
from ocr2cli.document.text_layer.ink import paper_of, window_of
from ocr2cli.document.text_layer.nouns import Drawing, TextCharacter
from ocr2cli.pages import Uint8Array

# A dot lost between two pixels is none, a word is.
_MAX_HIDDEN_SHARE = 0.02
_MIN_HIDDEN_RUN = 4
_MAX_OWN_COLOUR_SHARE = 0.5


def has_hidden(
    written: Sequence[TextCharacter], drawings: Sequence[Drawing], rgb: Uint8Array
) -> bool:
    """A run of characters that no one sees: invisible, of the colour of what is around them,
    painted over, or under a picture."""
    share = _own_colour_shares(written, rgb)
    hidden = np.array([not c.style.is_visible for c in written])
    hidden |= (share <= 0) | (share > _MAX_OWN_COLOUR_SHARE)
    boxes = np.array([c.box for c in written])
    seqno = np.array([c.style.seqno for c in written])
    x, y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    for drawing in drawings:
        if drawing.kind == "image":
            x0, y0, x1, y1 = drawing.box
            hidden |= (seqno < drawing.seqno) & (x0 < x) & (x < x1) & (y0 < y) & (y < y1)
    longest = max((end - start for start, end in runs(hidden)), default=0)
    return longest >= _MIN_HIDDEN_RUN or hidden.sum() > _MAX_HIDDEN_SHARE * len(written)


def _own_colour_shares(
    written: Sequence[TextCharacter], rgb: Uint8Array
) -> npt.NDArray[np.float64]:
    """float64 [N]: how much of each character's box has about the colour it is drawn in."""
    paper = paper_of(rgb).astype(np.int16)
    shares = np.full(len(written), 0.5)
    by_colour: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for n, character in enumerate(written):
        x0, y0, x1, y1 = character.box
        if character.style.colour is not None and x1 - x0 > 0.5 and y1 - y0 > 0.5:
            by_colour[character.style.colour].append(n)
    for colour, numbers in by_colour.items():
        contrast = int(np.abs(np.array(colour) - paper).max())
        # Thin strokes are half paper; white print, on a dark ground, must not be that wide.
        reach = 0.75 * contrast if contrast > MIN_CONTRAST else 60
        windows = [window_of(written[n].box, rgb.shape) for n in numbers]
        top, left = (min(window[k].start for window in windows) for k in (0, 1))
        bottom, right = (max(window[k].stop for window in windows) for k in (0, 1))
        near = np.zeros(rgb.shape[:2], np.bool_)
        near[top:bottom, left:right] = True
        for channel, value in enumerate(colour):
            part = rgb[top:bottom, left:right, channel]
            low, high = max(0, value - reach), min(255, value + reach)
            near[top:bottom, left:right] &= (part >= low) & (part <= high)
        for n, window in zip(numbers, windows, strict=True):
            own = near[window]
            shares[n] = np.count_nonzero(own) / max(1, own.size)
    return shares
