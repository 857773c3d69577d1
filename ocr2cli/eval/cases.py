"""The nouns of an evaluation: cases, the facts and tolerances they carry, suites of them.

Knows nothing about how a suite is written, or about models.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ocr2cli.config import DecodeConfig
from ocr2cli.errors import InputError
from ocr2cli.eval.facts import Fact
from ocr2cli.eval.metrics import Scores


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How much worse than the reference's own score ours may be, and why so much."""

    cer_tol: float
    chrf_tol: float
    reason: str


@dataclass(frozen=True, slots=True)
class NamedFact:
    """A fact with the name it has in the report."""

    id: str
    fact: Fact


@dataclass(frozen=True, slots=True)
class Case:
    """One page to read and score.

    path: the document on disk. page: 0-based. truth: plain text; truth_markdown: the same with
    markup where the suite has it ("" otherwise; scores of tables come from it). covers_page:
    False when the truth is a part of the page only. has_truth: False for pages with facts alone.
    blocks: the truth block by block in reading order, for benchmarks that have them;
    ignored_blocks: texts on the page (page numbers, running heads) that neither help nor harm.
    mode: for v1 only; "" for the engine's.
    needs: the kind of model the recorded scores belong to, "" for any.
    not_run: why the case cannot be run, "" when it can.
    """

    id: str
    suite: str
    path: Path
    page: int = 0
    truth: str = ""
    truth_markdown: str = ""
    covers_page: bool = True
    has_truth: bool = True
    blocks: tuple[str, ...] = ()
    ignored_blocks: tuple[str, ...] = ()
    prompt: str = "ocr"
    prompt_text: str = ""
    mode: str = ""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    needs: str = ""
    recorded: Scores | None = None
    tolerance: Tolerance | None = None
    facts: tuple[NamedFact, ...] = ()
    not_run: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """Cases with one name.

    overall: the tolerance on the means. gates_file: None when the suite has no own. facts_gate:
    False where facts are a score, not a promise. is_benchmark: somebody else's pages on the user's
    disk; fact ids then read `group:id`. left_out: ids of its other cases, which were not asked for.
    """

    name: str
    folder: Path
    cases: tuple[Case, ...]
    about: str = ""
    overall: Tolerance | None = None
    gates_file: Path | None = None
    facts_gate: bool = True
    is_benchmark: bool = False
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def suites_folder() -> Path:
    """Where the suites that come with the tool are: in the wheel, or in a checkout."""
    package = Path(__file__).parents[1]
    packed = package / "_eval"
    return packed if packed.is_dir() else package.parent / "eval"


def page_ids(names: Sequence[str]) -> list[str]:
    """Different names of pages to different ids: without their endings, which stay where needed."""
    taken = Counter([*names, *(_bare(name) for name in names)])
    return [_bare(name) if taken[_bare(name)] == 1 else name for name in names]


def _bare(name: str) -> str:
    return str(Path(name).with_suffix(""))


def file_sha256(path: Path) -> str:
    """Hex digest of a file. Raises: InputError."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
