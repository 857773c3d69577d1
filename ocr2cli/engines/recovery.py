"""The recovery ladder for pages that loop: a fixed order of steps, none of them random.

The first steps need nothing but the visual tokens and run in the decoder. The later ones need the
page's pixels again: they are jobs of their own, which `batch.py` hands to the runner while other
pages are read. Every try is kept in the result. Knows nothing about processes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ocr2cli.config import DecodeConfig
from ocr2cli.pages import Attempt, Box, FinishReason, PageJob, PageKey, PageResult, Status


def _as_it_is(cfg: DecodeConfig) -> DecodeConfig:
    return cfg


def _wider_ngram(cfg: DecodeConfig) -> DecodeConfig:
    """The rule looks back over the whole page and forbids shorter runs, which breaks loops whose
    period exceeds the usual window. Never looser than the run's own rule, where it is on."""
    is_unbounded = cfg.no_repeat_ngram > 0 and cfg.ngram_window == 0
    return replace(
        cfg,
        dry=None,
        no_repeat_ngram=min(cfg.no_repeat_ngram or 12, 12),
        ngram_window=0 if is_unbounded else max(cfg.ngram_window, 1_000),
    )


@dataclass(frozen=True, slots=True)
class Step:
    """name: written to the sidecar. view: which visual tokens the try reads. settings: the run's
    -> the try's."""

    name: str
    view: str = "all"  # all | global
    settings: Callable[[DecodeConfig], DecodeConfig] = _as_it_is


# In the decoder. Order: what changes the page's reading least comes first.
STEPS = (
    Step("first"),
    Step("wider-ngram", settings=_wider_ngram),
    Step("global-view", view="global"),
)
# From the pixels: name of the step, and the views of the page it reads one after the other.
PIXEL_STEPS = (
    ("upright", ("upright",)),
    ("halves", ("top", "bottom")),
)
NOTHING = "the model wrote nothing for this page"
TURNED = "boxes and figures are left out: the page was turned to read it"

# As `engines/finish.py` writes it.
_FIGURE = re.compile(r"!\[\]\(figure:(\d{1,4})\)")


def decoder_steps(cfg: DecodeConfig, *, has_tiles: bool) -> tuple[Step, ...]:
    """The first try, and the steps that can read the page otherwise than it did: not those whose
    settings are the run's own, nor the global view of a page that has nothing else."""
    return tuple(
        step
        for step in STEPS
        if step is STEPS[0] or step.settings(cfg) != cfg or (step.view == "global" and has_tiles)
    )


@dataclass(slots=True)
class _Climb:
    """One looping page on its way up. first: its result before any pixel step. attempts and
    seconds: of all tries, the decoder's included."""

    job: PageJob
    first: PageResult
    step: int = 0
    parts: list[PageResult] = field(default_factory=list)
    attempts: list[Attempt] = field(init=False)
    seconds: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.attempts = list(self.first.attempts)
        self.seconds = dict(self.first.seconds)

    @property
    def name(self) -> str:
        return PIXEL_STEPS[self.step][0]

    def next_job(self) -> PageJob:
        view = PIXEL_STEPS[self.step][1][len(self.parts)]
        return replace(self.job, attempt=0, ask=replace(self.job.ask, view=view))

    def judge(self, result: PageResult) -> bool:
        """Note a try. A bad part ends its step, as parts do that are all empty; True when a step
        has all its parts."""
        self.parts.append(result)
        has_all = len(self.parts) == len(PIXEL_STEPS[self.step][1])
        is_empty = has_all and self._is_empty()
        note = result.error.message if result.error else NOTHING if is_empty else ""
        self.attempts.append(Attempt(self.name, result.finish_reason, result.new_tokens, note))
        for name, value in result.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + value
        if not result.status.is_good or is_empty:
            self.parts.clear()
            self.step += 1
            return False
        return has_all

    def _is_empty(self) -> bool:
        """Whether nothing would be left of the parts: a turned page keeps neither boxes nor
        figures."""
        is_turned = self.name == "upright"
        has_boxes = not is_turned and any(part.boxes for part in self.parts)
        return not has_boxes and not _joined(self.parts, has_figures=not is_turned).strip()


class Ladder:
    """The pixel steps of the pages of one run."""

    def __init__(self) -> None:
        self._climbs: dict[PageKey, _Climb] = {}
        self._jobs: deque[PageJob] = deque()

    @property
    def is_busy(self) -> bool:
        """True while a page is to be read again."""
        return bool(self._jobs)

    def next_job(self) -> PageJob | None:
        """A page to read again, for its next step or as `again` was told; or None."""
        return self._jobs.popleft() if self._jobs else None

    def again(self, job: PageJob) -> None:
        """Hand this job out once more."""
        self._jobs.append(job)

    def take(self, job: PageJob, result: PageResult) -> PageResult | None:
        """The page's final result, or None when another step is tried first."""
        climb = self._climbs.get(result.key)
        if climb is None:
            if result.status is not Status.LOOP:
                return result
            climb = self._climbs[result.key] = _Climb(job, result)
        elif climb.judge(result):
            del self._climbs[result.key]
            return _recovered(climb)
        if climb.step == len(PIXEL_STEPS):
            del self._climbs[result.key]
            return replace(climb.first, attempts=tuple(climb.attempts), seconds=climb.seconds)
        self._jobs.append(climb.next_job())
        return None


def _recovered(climb: _Climb) -> PageResult:
    """The parts as one page: texts in order, boxes in the whole page's units."""
    first, parts = climb.first, climb.parts
    confidences = [part.confidence for part in parts if part.confidence is not None]
    lowest = [part.confidence_p5 for part in parts if part.confidence_p5 is not None]
    warnings = [note for part in parts for note in part.warnings]
    is_turned = climb.name == "upright"
    if is_turned:
        # Boxes of the turned page would point at the wrong places of the page as it is.
        warnings.append(TURNED)
    return replace(
        first,
        status=Status.RECOVERED,
        # What the looping try had of the PDF's own text; halves are not compared with it.
        extra=parts[0].extra if is_turned else {},
        markdown=_joined(parts, has_figures=not is_turned),
        raw="\n".join(part.raw for part in parts),
        finish_reason=FinishReason.STOP,  # a part is read to its end, or it is blank and has none
        boxes=() if is_turned else tuple(_boxes(parts)),
        new_tokens=sum(part.new_tokens for part in parts),
        confidence=min(confidences, default=None),
        confidence_p5=min(lowest, default=None),
        token_ids=tuple(token for part in parts for token in part.token_ids),
        warnings=tuple(dict.fromkeys(warnings)),
        attempts=tuple(climb.attempts),
        seconds=climb.seconds,
    )


def _joined(parts: Sequence[PageResult], *, has_figures: bool) -> str:
    """The parts' markdown, figures numbered through the whole page (or without figures)."""
    texts, num_figures = [], 0
    for part in parts:
        texts.append(_renumbered(part.markdown, num_figures) if has_figures else
                     _FIGURE.sub("", part.markdown).strip())  # fmt: skip
        num_figures += sum(box.label == "image" for box in part.boxes)
    return "\n\n".join(text for text in texts if text)


def _renumbered(text: str, offset: int) -> str:
    return _FIGURE.sub(lambda found: f"![](figure:{int(found[1]) + offset})", text)


def _boxes(parts: Sequence[PageResult]) -> Iterator[Box]:
    """Boxes of parts that lie one below the other, in 0-999 of the whole page."""
    heights = [part.page_size[1] for part in parts]
    total = max(sum(heights), 1)
    for number, part in enumerate(parts):
        top, share = sum(heights[:number]) / total, heights[number] / total
        for box in part.boxes:
            x1, y1, x2, y2 = box.box
            y1, y2 = (min(999, int(999 * top + y * share)) for y in (y1, y2))
            yield replace(box, box=(x1, y1, x2, y2))
