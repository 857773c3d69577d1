"""The run's summary: counted page by page; an object for machines, a few lines for people.

Knows nothing about how pages were read or written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ocr2cli.errors import ExitCode
from ocr2cli.output.jsonl import rounded
from ocr2cli.output.names import output_name
from ocr2cli.pages import LITTLE_FOUND, PageResult, Status
from ocr2cli.pipeline.journal import PASSING
from ocr2cli.printing import printable

# A page that failed with one of these never reached the model: the input is at fault.
INPUT_CODES = frozenset(
    {"unreadable", "encrypted", "not_a_file", "unsupported", "empty", "too_large"}
    | {"changed", "away"}
)
# Below this confidence a page is misread. Of nano, pages that are read right have 0.9 and more,
# those with every fourth character wrong 0.7, photographs and sideways scans less than 0.5.
BADLY_READ = 0.75
_MAX_LINES = 10


@dataclass(frozen=True, slots=True)
class PageNote:
    """A page somebody should look at. document: as its files are named, exactly. page: 1-based.
    is_of_no_page: as of a result."""

    document: str
    page: int
    status: str
    code: str = ""
    message: str = ""
    confidence: float | None = None
    own_text_found: float | None = None
    is_of_no_page: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "document": self.document,
            "page": self.page,
            "status": self.status,
            "code": self.code,
            "message": self.message,
            "confidence": self.confidence,
            "own_text_found": self.own_text_found,
        }

    def __str__(self) -> str:
        why = f": {self.message} ({self.code})" if self.code else ""
        sure = f" ({signs})" if (signs := self.signs()) else ""
        return f"{self.name}: {self.status}{why}{sure}"

    @property
    def name(self) -> str:
        document = printable(self.document)
        return document if self.is_of_no_page else f"{document} page {self.page}"

    def signs(self) -> str:
        """What tells how well the page was read; "" where nothing does."""
        signs = [] if self.confidence is None else [f"confidence {self.confidence:.2f}"]
        if self.own_text_found is not None:
            signs.append(f"{self.own_text_found:.0%} of the PDF's own text found in it")
        return ", ".join(signs)


def is_reused(result: PageResult) -> bool:
    """True for a page of this run that no model read: its text was there for its pixels, in the
    page cache or in this output folder. Its tokens and seconds are another run's."""
    return result.extra.get("source") == "cache" or bool(result.extra.get("same_pixels"))


def is_from_text_layer(result: PageResult) -> bool:
    """True for a page whose text is the PDF's own: no model read it."""
    return result.extra.get("source") == "text-layer"


@dataclass(slots=True)
class Summary:
    """What the run did. seconds and tokens: of the pages it read; seconds per stage, summed.

    pages_resumed: those an earlier run had finished; pages_reused: see `is_reused`.
    pages_from_text_layer: those of earlier runs included; pages_taken: those of this run, which
    spent taken_seconds on them.
    document_faults: name, exactly as the files have it, and why, in one line for people.
    documents_kept: of document_faults, those that could not be opened and were read earlier.
    pages_badly_read: those that looped or were cut, of little confidence, or with little of the
    PDF's own text. pages_badly_read_of_text: of them, those whose PDF has a text of its own.
    worker_deaths: workers that were killed, hung or ended by an error, of all stages.
    forecast: pages, new_tokens, seconds and basis of what was expected; {} without a forecast.
    ended_by: exit code of the signal or the error that ended the run; 0: it ended by itself.
    has_rest: whether the run left documents or uploads undone, for another to take up.
    """

    min_confidence: float = 0.0
    documents: int = 0
    documents_written: int = 0
    documents_unchanged: int = 0
    documents_incomplete: int = 0
    document_faults: list[tuple[str, str]] = field(default_factory=list)
    documents_kept: int = 0
    pages: int = 0
    pages_resumed: int = 0
    pages_reused: int = 0
    pages_from_text_layer: int = 0
    pages_taken: int = 0
    taken_seconds: float = 0.0
    pages_badly_read: int = 0
    pages_badly_read_of_text: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    visual_tokens: int = 0
    new_tokens: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    wall_seconds: float = 0.0
    worker_deaths: int = 0
    bad_pages: list[PageNote] = field(default_factory=list)
    unsure_pages: list[PageNote] = field(default_factory=list)
    babble_pages: list[PageNote] = field(default_factory=list)
    doubtful_pages: list[PageNote] = field(default_factory=list)
    forecast: dict[str, Any] = field(default_factory=dict)
    ended_by: int = 0
    has_rest: bool = True
    _num_failures: int = 0
    _num_input_failures: int = 0
    _num_old_bad: int = 0
    _mendable_codes: Counter[str] = field(default_factory=Counter)

    def count(self, result: PageResult, *, is_resumed: bool) -> None:
        """Adds one page. is_resumed: an earlier run read it, so it took no time in this one."""
        self.pages += 1
        self.by_status[result.status.value] += 1
        self.pages_from_text_layer += is_from_text_layer(result)
        if is_resumed:
            self.pages_resumed += 1
        elif is_reused(result):
            self.pages_reused += 1
        else:
            self.visual_tokens += result.visual_tokens
            self.new_tokens += result.new_tokens
            self.seconds.update(dict(result.seconds))
            if is_from_text_layer(result):
                self.pages_taken += 1
                self.taken_seconds += result.seconds.get("raster", 0.0)
        self._note(result, is_resumed)

    def _note(self, result: PageResult, is_resumed: bool) -> None:
        note = PageNote(
            document=output_name(result.key.document),
            page=result.key.page + 1,
            status=result.status.value,
            code=result.error.code if result.error else "",
            message=printable(result.error.message) if result.error else "",
            confidence=rounded(result.confidence, 4),
            own_text_found=result.own_text_found,
            is_of_no_page=result.is_of_no_page,
        )
        if not result.status.is_good:
            self.bad_pages.append(note)
            self._num_old_bad += is_resumed
            self._num_failures += result.status is Status.FAILED and not is_resumed
            self._num_input_failures += note.code in INPUT_CODES
            # A page that looped or was cut would do so again.
            is_mendable = note.code in PASSING or note.code not in INPUT_CODES
            if result.status is Status.FAILED and is_mendable and not is_resumed:
                self._mendable_codes[note.code] += 1
        elif note.confidence is not None and note.confidence < self.min_confidence:
            self.unsure_pages.append(note)
        is_doubtful = note.own_text_found is not None and note.own_text_found < LITTLE_FOUND
        if result.status.is_good and is_doubtful:
            self.doubtful_pages.append(note)
        is_babble = note.confidence is not None and note.confidence < BADLY_READ
        if result.status.is_good and is_babble:
            self.babble_pages.append(note)
        is_cut = result.status in (Status.LOOP, Status.TRUNCATED)
        is_badly_read = is_cut or is_doubtful or is_babble
        self.pages_badly_read += is_badly_read
        self.pages_badly_read_of_text += is_badly_read and note.own_text_found is not None

    @property
    def pages_read(self) -> int:
        """Pages that this run read itself."""
        return self.pages - self.pages_resumed - self.pages_reused

    @property
    def pages_of_model(self) -> int:
        """Of them, those that were not taken from a PDF's own text."""
        return self.pages_read - self.pages_taken

    @property
    def has_speed(self) -> bool:
        """False when this run read no page itself: how fast pages failed is no speed, nor is how
        fast they were found."""
        return self.pages_read > self._num_failures

    @property
    def pages_per_minute(self) -> float:
        return 60 * self.pages_read / self.wall_seconds if self.wall_seconds > 0 else 0.0

    @property
    def exit_code(self) -> ExitCode:
        """0, 5, or 3 when not one page of any input could be opened; or what ended the run."""
        if self.ended_by:
            return ExitCode(self.ended_by)
        has_read_nothing = self.pages == self._num_input_failures
        has_other_faults = len(self.document_faults) > self.documents_kept
        if has_read_nothing and not has_other_faults and not self.documents_incomplete:
            return ExitCode.INPUT
        if self.bad_pages or self.document_faults:
            return ExitCode.PAGES_FAILED
        return ExitCode.OK

    def to_json(self) -> dict[str, Any]:
        """One JSON object; the numbers of `--json` and of OUT/.ocr2/summary.json."""
        return {
            "exit_code": int(self.exit_code),
            "documents": self.documents,
            "documents_written": self.documents_written,
            "documents_unchanged": self.documents_unchanged,
            "documents_incomplete": self.documents_incomplete,
            "document_errors": [
                {"document": document, "message": message}
                for document, message in self.document_faults
            ],
            "pages": self.pages,
            "pages_resumed": self.pages_resumed,
            "pages_from_text_layer": self.pages_from_text_layer,
            "pages_by_status": {status.value: self.by_status[status.value] for status in Status},
            "visual_tokens": self.visual_tokens,
            "new_tokens": self.new_tokens,
            "seconds": {name: round(value, 3) for name, value in sorted(self.seconds.items())},
            "wall_seconds": round(self.wall_seconds, 3),
            "pages_per_minute": round(self.pages_per_minute, 2),
            "worker_deaths": self.worker_deaths,
            "forecast": self.forecast,
            "failed_pages": [note.to_json() for note in self.bad_pages],
            "min_confidence": self.min_confidence,
            "low_confidence_pages": [note.to_json() for note in self.unsure_pages],
            "badly_read_pages": [note.to_json() for note in self.babble_pages],
            "doubtful_pages": [note.to_json() for note in self.doubtful_pages],
        }

    def to_text(self) -> str:
        """For people: one line when all is well, then what needs a look, at most ten of a kind and
        each page once."""
        lines = [self._headline(), *self._against_forecast()]
        lines += _list("to look at", [str(note) for note in self.bad_pages])
        if self._num_old_bad:
            lines.append(
                f"from earlier runs: {counted(self._num_old_bad, 'page')}; "
                "--retry-failed reads such pages again"
            )
        elif self._mendable_codes:
            # As the next run decides: it asks for those that failed in passing by itself.
            flag = "" if self._mendable_codes.keys() <= PASSING else " with --retry-failed"
            lines.append(
                f"another try may mend {counted(self._mendable_codes.total(), 'page')}: run the "
                f"same command again{flag}"
            )
        lines += _list(
            "not written",
            [f"{printable(name)}: {message}" for name, message in self.document_faults],
        )
        lines += _list(
            f"below --min-confidence {self.min_confidence:g}",
            [str(note) for note in self.unsure_pages],
        )
        named = set(self.unsure_pages)
        babble = [note for note in self.babble_pages if note not in named]
        named.update(babble)
        lines += _list(
            "read badly, by their confidence", [f"{note.name}: {note.signs()}" for note in babble]
        )
        lines += _list(
            "perhaps not all of it read",
            [
                f"{note.name}: {note.own_text_found:.0%} of the PDF's own text was found in what "
                "was read"
                for note in self.doubtful_pages
                if note not in named
            ],
        )
        if self.worker_deaths:
            lines.append(f"workers that died: {self.worker_deaths:,}")
        return "\n".join(lines)

    def _against_forecast(self) -> list[str]:
        if not self.forecast or not self.has_speed:
            return []
        expected, read = self.forecast, self.pages_read
        seconds = "no time" if expected["seconds"] is None else f"{expected['seconds']:.1f} s"
        return [
            f"forecast {counted(expected['pages'], 'page')}, "
            f"{expected['new_tokens']:,} new tokens, {seconds} by {expected['basis']}; "
            f"it was {counted(read, 'page')}, {self.new_tokens:,} new tokens, "
            f"{self.wall_seconds:.1f} s"
        ]

    def _headline(self) -> str:
        resumed = f" ({self.pages_resumed} from earlier runs)" if self.pages_resumed else ""
        parts = [f"{counted(self.pages, 'page')} of {counted(self.documents, 'document')}{resumed}"]
        parts += [
            f"{self.by_status[status.value]} {status.value}"
            for status in Status
            if status is not Status.OK and self.by_status[status.value]
        ]
        if self.pages_from_text_layer:
            parts.append(f"{self.pages_from_text_layer:,} taken from the PDFs' own text")
        if self.documents_incomplete:
            parts.append(f"{counted(self.documents_incomplete, 'document')} not finished")
        if self.pages > self.pages_resumed:
            parts.append(f"{self.wall_seconds:.1f} s")
        if self.has_speed:
            parts.append(f"{self.pages_per_minute:.1f} pages/min")
        return ", ".join(parts)


def counted(number: int, noun: str) -> str:
    """`1 page`, `1,000 pages`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _list(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    lines = [f"{title}:", *(f"  {item}" for item in items[:_MAX_LINES])]
    left = len(items) - _MAX_LINES
    return lines + ([f"  and {left} more, listed in .ocr2/summary.json"] if left > 0 else [])
