"""The nouns: what travels between stages, all frozen, all sized.

Knows nothing about files, models or processes; torch and numpy are named for the type checker only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    Uint8Array = npt.NDArray[np.uint8]
else:
    Uint8Array = "npt.NDArray[np.uint8]"  # numpy costs 0.1 s that `ocr2 --help` does not have


class Status(StrEnum):
    """The one state a page ends in. The values are written to the sidecar."""

    OK = "ok"
    RECOVERED = "recovered"
    BLANK = "blank"
    LOOP = "loop"
    TRUNCATED = "truncated"
    FAILED = "failed"

    @property
    def is_good(self) -> bool:
        """True when the page needs no human: exit code 0 asks for nothing else."""
        return self in (Status.OK, Status.RECOVERED, Status.BLANK)


class FinishReason(StrEnum):
    """Why the decoder stopped: end token, token limit, or a periodic tail."""

    STOP = "stop"
    LENGTH = "length"
    LOOP = "loop"


@dataclass(frozen=True, slots=True, order=True)
class PageKey:
    """Which page: travels with everything.

    document: stable id of the document within the run (its output stem, unique in the run).
    page: 0-based index; people read it 1-based.
    """

    document: str
    page: int

    def __str__(self) -> str:
        return f"{self.document} page {self.page + 1}"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one page wants instead of the run's settings; empty means as the run says.

    prompt: exact prompt text. max_new_tokens: a lower token limit. view: what of the page to read,
    on a recovery step: "upright" (turned), "top" or "bottom" (a half). password: of the document.
    """

    prompt: str = ""
    max_new_tokens: int = 0
    view: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class PageJob:
    """One page to read. About 200 bytes; everything a worker needs to find the pixels.

    path: absolute path of the input, as given by the file system (may hold surrogate escapes).
    sha256: hex digest of the whole input file, or "" when the file could not be read.
    num_pages: pages of the document that this run reads; it is written when so many have a result.
    of_pages: pages that the document has; 0 where nobody has counted.
    known_pixels: digest of this page's pixels as an earlier run read them: when the file changed
    but this page did not, the earlier result is kept.
    error: set when the document could not be listed: the runner turns it into a result.
    """

    key: PageKey
    path: str
    sha256: str
    num_pages: int
    dpi: int = 144
    attempt: int = 0
    known_pixels: str = ""
    error: PageError | None = None
    ask: Ask = Ask()
    of_pages: int = 0


@dataclass(frozen=True, slots=True)
class PageImage:
    """Pixels of one page. rgb: uint8 [H, W, 3], RGB, 0-255, upright. dpi: as rendered.

    damage: what the file has lost of this page, in its reader's words; "" when nothing.
    """

    key: PageKey
    rgb: Uint8Array
    dpi: float
    warnings: tuple[str, ...] = ()
    damage: str = ""


@dataclass(frozen=True, slots=True)
class Views:
    """The model's square inputs for one page.

    global_view: uint8 [3, 1024, 1024]; tiles: uint8 [N, 3, T, T], row-major, N may be 0.
    grid: (columns, rows), (1, 1) when there are no tiles. page_size: (width, height) in pixels.
    pixels_sha256: digest of the page's RGB pixels: the cache key's first half.
    own_text: the PDF's text layer, "" where there is none: a draft, and a witness of what is there.
    """

    key: PageKey
    global_view: Uint8Array
    tiles: Uint8Array
    grid: tuple[int, int]
    page_size: tuple[int, int]
    pixels_sha256: str = ""
    own_text: str = ""
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    ask: Ask = Ask()

    @property
    def num_tiles(self) -> int:
        return int(self.tiles.shape[0])


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """Encoder output rows of one page, on the CPU, in decoder space.

    tokens: [S, D] in the model dtype; tiles first, then the global view, the separator last.
    """

    key: PageKey
    tokens: torch.Tensor
    grid: tuple[int, int]
    page_size: tuple[int, int]
    pixels_sha256: str = ""
    own_text: str = ""
    warnings: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    ask: Ask = Ask()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the tokens as a numpy view: torch's own way goes through a file in memory."""
        import torch

        raw = self.tokens.detach().cpu().contiguous().view(torch.uint8).numpy()
        dtype = str(self.tokens.dtype).removeprefix("torch.")
        rest = (self.grid, self.page_size, self.pixels_sha256, self.own_text, self.warnings)
        return _visual_tokens, (self.key, raw, dtype, *rest, dict(self.seconds), self.ask)


def _visual_tokens(key: PageKey, raw: Uint8Array, dtype: str, *rest: Any) -> VisualTokens:
    """Undo `VisualTokens.__reduce__`: the tokens share the memory of `raw`."""
    import torch

    return VisualTokens(key, torch.from_numpy(raw).view(getattr(torch, dtype)), *rest)


@dataclass(frozen=True, slots=True)
class Generation:
    """What the decoder wrote for one page.

    token_ids: new tokens, without the end token. text: decoded with specials kept.
    logprobs: natural-log probability of each new token (the end token's last when it came).
    pieces: the bytes that each stands for, where that is known; the end token's may be left out.
    num_unnamed: new tokens where a server tells how many there are, and not which.
    step: of the recovery ladder.
    """

    key: PageKey
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_visual_tokens: int
    logprobs: tuple[float, ...] = ()
    pieces: tuple[bytes, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    num_unnamed: int = 0
    step: str = "first"

    @property
    def num_new_tokens(self) -> int:
        return len(self.token_ids) + self.num_unnamed


@dataclass(frozen=True, slots=True)
class Box:
    """A labelled box of the model's grounding: (x1, y1, x2, y2) in 0-999 of the page."""

    label: str
    box: tuple[int, int, int, int]


# Less of a PDF's own text found in what was read than this share: something may have been left out
# or misread. Labels of a drawing are no text to read, so a good page may well have less than all.
LITTLE_FOUND = 0.7


@dataclass(frozen=True, slots=True)
class PageError:
    """Why a page failed. code: a stable word from errors.py; message: one line for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a page. step: "first" or the name of the recovery step."""

    step: str
    finish_reason: FinishReason | None
    new_tokens: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class PageResult:
    """The one result of one page. A page part stores every field, a sidecar's line most of them."""

    key: PageKey
    status: Status
    markdown: str = ""
    raw: str = ""
    finish_reason: FinishReason | None = None
    boxes: tuple[Box, ...] = ()
    grid: tuple[int, int] = (1, 1)
    page_size: tuple[int, int] = (0, 0)
    visual_tokens: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0
    confidence: float | None = None
    confidence_p5: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    input_sha256: str = ""
    pixels_sha256: str = ""
    warnings: tuple[str, ...] = ()
    error: PageError | None = None
    token_ids: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_of_no_page(self) -> bool:
        """True for the result of a document that has no page to read, or none that is asked for:
        its page number is that of no page."""
        return self.error is not None and self.error.code == "empty"

    @property
    def own_text_found(self) -> float | None:
        """How much of a PDF's own text stands in what was read, 0..1; None where it has too little
        of its own to tell."""
        share = self.extra.get("own_text_found")
        return share if isinstance(share, float | int) else None


@dataclass(frozen=True, slots=True)
class Unchanged(PageResult):
    """A raster worker's word that a page's pixels are `PageJob.known_pixels`: the earlier result
    stands. Never written. warnings: the page's own; raw: the PDF's own text to compare with."""


@dataclass(frozen=True, slots=True)
class Document:
    """One input, complete: its pages in page order, one result each."""

    id: str
    path: str
    pages: tuple[PageResult, ...]
