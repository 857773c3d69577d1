"""The summary and the metrics file: the numbers that scripts and people read in the morning."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from page_factory import failed, page

from ocr2cli.errors import ExitCode, OutputError
from ocr2cli.output.metrics import PipelineGauges, metrics_text, write_metrics
from ocr2cli.output.summary import BADLY_READ, INPUT_CODES, Summary
from ocr2cli.output.writer import Writer
from ocr2cli.pages import LITTLE_FOUND, PageError, PageJob, PageKey, PageResult, Status


def summary(*pages: PageResult, resumed: int = 0, **fields: float) -> Summary:
    one = Summary(**fields)  # type: ignore[arg-type]
    one.documents = len({p.key.document for p in pages})
    for index, result in enumerate(pages):
        one.count(result, is_resumed=index < resumed)
    return one


@pytest.mark.parametrize(
    ("code", "expected"),
    [("away", ExitCode.INPUT), ("encrypted", ExitCode.INPUT),
     ("out_of_memory", ExitCode.PAGES_FAILED)],
)  # fmt: skip
def test_a_kept_document_is_no_input_that_was_read(code: str, expected: ExitCode) -> None:
    """With what an earlier run had read of it in OUT, an input that was away was exit 5, not 3."""
    writer: Any = SimpleNamespace(summary=Summary())
    Writer.leave(writer, PageJob(PageKey("d", 0), "/d", "", 1, error=PageError(code, "why.")))
    assert writer.summary.exit_code == expected
    writer.summary.count(page("e"), is_resumed=False)
    assert writer.summary.exit_code == ExitCode.PAGES_FAILED


@pytest.mark.parametrize("status", list(Status))
def test_the_exit_code_is_zero_only_for_good_pages(status: Status) -> None:
    bad = failed("d", 1) if status is Status.FAILED else page("d", 1, status=status)
    is_good = status in (Status.OK, Status.RECOVERED, Status.BLANK)
    expected = ExitCode.OK if is_good else ExitCode.PAGES_FAILED
    assert summary(page("d"), bad).exit_code == expected


def test_no_input_that_could_be_opened_is_code_three() -> None:
    broken = [failed("d", n, code) for n, code in enumerate(sorted(INPUT_CODES))]
    assert summary(*broken).exit_code == ExitCode.INPUT
    assert summary(*broken, page("e")).exit_code == ExitCode.PAGES_FAILED
    assert summary(*broken, failed("e", 0, "timeout")).exit_code == ExitCode.PAGES_FAILED
    assert summary().exit_code == ExitCode.INPUT
    unwritten = summary(*broken)
    unwritten.document_faults.append(("d", "in the way"))
    assert unwritten.exit_code == ExitCode.PAGES_FAILED


def test_a_document_that_could_not_be_written_is_code_five() -> None:
    one = summary(page("d"))
    one.document_faults.append(("d", "in the way"))
    assert one.exit_code == ExitCode.PAGES_FAILED
    assert "not written:\n  d: in the way" in one.to_text()


def test_all_well_is_one_line() -> None:
    one = summary(page("a"), page("b", 0), page("b", 1, status=Status.BLANK), wall_seconds=9.0)
    assert one.to_text() == "3 pages of 2 documents, 1 blank, 9.0 s, 20.0 pages/min"
    assert summary(page("a"), resumed=1).to_text() == "1 page of 1 document (1 from earlier runs)"


def test_workers_that_died_are_counted_and_named_only_where_there_were_any() -> None:
    one = summary(page("a"))
    assert one.to_json()["worker_deaths"] == 0 and "worker" not in one.to_text()
    one.worker_deaths = 2
    assert one.to_json()["worker_deaths"] == 2
    assert one.to_text().splitlines()[1:] == ["workers that died: 2"]
    assert one.exit_code == ExitCode.OK


def test_pages_whose_text_is_the_pdfs_own_are_counted() -> None:
    taken = [replace(page("a", n), extra={"source": "text-layer"}) for n in range(3)]
    one = summary(*taken, page("b"), resumed=1, wall_seconds=9.0)
    assert one.to_text() == (
        "4 pages of 2 documents (1 from earlier runs), 3 taken from the PDFs' own text, 9.0 s, "
        "20.0 pages/min"
    )
    assert one.to_json()["pages_from_text_layer"] == 3


def test_an_interrupted_run_is_not_one_without_input() -> None:
    one = summary(failed("d", 0, "unreadable"))
    one.documents_incomplete = 1
    assert one.exit_code == ExitCode.PAGES_FAILED
    one.ended_by = ExitCode.SIGINT
    assert one.exit_code == ExitCode.SIGINT


def test_pages_that_loop_or_were_cut_are_listed_without_being_called_failed() -> None:
    pages = [page("d", 0, status=Status.LOOP), page("d", 1, status=Status.TRUNCATED), page("e")]
    text = summary(*pages, resumed=1).to_text()
    assert "\nto look at:\n  d page 1: loop (confidence 0.99)\n  d page 2: truncated" in text
    assert "from earlier runs: 1 page; --retry-failed" in text and " failed" not in text


@pytest.mark.parametrize(
    ("codes", "hint"),
    [
        (["timeout", "worker_died"], "another try may mend 2 pages: run the same command again "
                                     "with --retry-failed"),
        (["timeout", "too_large"], "another try may mend 1 page: run the same command again "
                                   "with --retry-failed"),
        (["away", "request"], "another try may mend 2 pages: run the same command again"),
        (["unreadable", "too_large"], ""),
    ],
)  # fmt: skip
def test_the_first_report_says_which_pages_another_try_may_mend(
    codes: list[str], hint: str
) -> None:
    """The next run said so, after it had taken their failures over."""
    pages = [failed("d", number, code) for number, code in enumerate(codes)]
    cut = page("e", status=Status.TRUNCATED)
    lines = summary(*pages, cut).to_text().splitlines()
    assert [line for line in lines if "another try" in line] == ([hint] if hint else [])


@pytest.mark.parametrize(
    ("one", "is_badly_read"),
    [
        (page("d"), False),
        (replace(page("d"), confidence=BADLY_READ), False),
        (replace(page("d"), extra={"own_text_found": LITTLE_FOUND}), False),
        (replace(page("d"), confidence=0.79), False),  # as nano's own, with a letter in ten wrong
        (page("d", status=Status.BLANK), False),
        (failed("d", 0, "unreadable"), False),  # the input is at fault, whatever the model
        (page("d", status=Status.LOOP), True),
        (page("d", status=Status.TRUNCATED), True),
        (replace(page("d"), confidence=0.72), True),  # a letter in four
        (replace(page("d"), extra={"own_text_found": 0.69}), True),
    ],
)
def test_pages_that_another_model_might_read_better_are_counted(one, is_badly_read) -> None:
    counted = summary(page("a"), one)
    assert counted.pages_badly_read == is_badly_read
    assert counted.pages_badly_read_of_text == (is_badly_read and bool(one.extra))


FORECAST = {"pages": 2, "new_tokens": 9, "seconds": 3.0, "basis": "this machine's last runs"}


def test_a_run_that_could_read_no_page_has_no_speed() -> None:
    """It told of 155.6 pages/min, and set them beside the forecast."""
    gone = [failed("d", n, "unreadable") for n in range(2)]
    for pages in (gone, [page("a"), *gone]):
        one = summary(*pages, resumed=len(pages) - 2, wall_seconds=0.5)
        one.forecast = FORECAST
        text = one.to_text()
        assert "0.5 s\n" in text and "pages/min" not in text and "forecast" not in text
    one = summary(page("a"), *gone, wall_seconds=0.5)
    one.forecast = FORECAST
    assert "0.5 s, 360.0 pages/min\nforecast 2 pages" in one.to_text()
    one = summary(*gone, page("a"), resumed=2, wall_seconds=0.5)
    assert "0.5 s, 120.0 pages/min" in one.to_text(), "an earlier run's failures are no work"


def test_pages_that_were_found_have_no_speed() -> None:
    """A run whose pages all came out of the cache told of 6,000 pages/min."""
    found = [
        replace(page("a", n), extra={"source": "cache"} if n % 2 else {"same_pixels": True})
        for n in range(100)
    ]
    one = summary(*found, wall_seconds=1.0)
    one.forecast = FORECAST
    assert one.to_text().endswith(", 1.0 s")
    one = summary(*found, page("b"), failed("b", 1), wall_seconds=1.0)
    assert ", 1.0 s, 120.0 pages/min" in one.to_text()
    assert one.to_json()["pages_per_minute"] == 120.0


def test_bad_and_unsure_pages_are_listed_by_name_ten_at_most() -> None:
    unsure = page("u", 6, confidence=0.5)
    assert "below" not in summary(page("u", confidence=0.8), min_confidence=0.8).to_text()
    many = [failed("d", n, "timeout", "slow\x1b[1m") for n in range(12)]
    text = summary(unsure, page("s", confidence=0.8), *many, min_confidence=0.6).to_text()
    assert "u page 7: ok (confidence 0.50)" in text and "s page 1" not in text
    assert "d page 10" in text and "d page 11" not in text and "and 2 more" in text
    assert "\x1b" not in text and "more" not in summary(*many[:10]).to_text()
    assert "\x1b" not in summary(failed("d\x1b")).to_text()
    assert len(summary(*many).to_json()["failed_pages"]) == 12


def test_pages_of_which_little_was_found_are_listed_and_change_no_exit_code() -> None:
    shares = {"a": 0.98, "b": 0.41, "c": 0.0}
    pages = [replace(page(name), extra={"own_text_found": share}) for name, share in shares.items()]
    one = summary(*pages, page("d"), failed("e", 0))
    assert summary(*pages).exit_code == ExitCode.OK
    assert [row["document"] for row in one.to_json()["doubtful_pages"]] == ["b", "c"]
    line = "\n  b page 1: 41% of the PDF's own text was found in what was read\n"
    assert line in one.to_text()


def test_pages_of_little_confidence_are_listed_once_and_change_no_exit_code() -> None:
    """They were counted, a hint spoke of "pages like these", and no line said which."""
    babble = {"own_text_found": 0.1}
    pages = [page("a"), page("b", confidence=0.41), page("c", confidence=0.3, extra=babble)]
    one = summary(*pages)
    assert one.exit_code == ExitCode.OK and one.pages_badly_read == 2
    assert [row["document"] for row in one.to_json()["badly_read_pages"]] == ["b", "c"]
    assert one.to_text().endswith(
        "\nread badly, by their confidence:\n  b page 1: confidence 0.41"
        "\n  c page 1: confidence 0.30, 10% of the PDF's own text found in it"
    )
    assert "by their" not in summary(*pages, min_confidence=0.8).to_text()
    loop = summary(page("d", status=Status.LOOP, confidence=0.2, extra=babble)).to_json()
    assert not loop["badly_read_pages"] and not loop["doubtful_pages"] and loop["failed_pages"]
    many = [page("d", n, confidence=0.2) for n in range(12)]
    assert "and 2 more, listed in .ocr2/summary.json" in summary(*many).to_text()


def test_resumed_pages_count_as_pages_but_not_as_work() -> None:
    row = summary(page("a", 0), page("a", 1), resumed=1, wall_seconds=6.0).to_json()
    assert (row["pages"], row["pages_resumed"], row["new_tokens"]) == (2, 1, 12)
    assert row["seconds"] == {"decode": 2.5, "raster": 0.25} and row["pages_per_minute"] == 10.0


LINE = re.compile(r'([a-z0-9_]+)(\{([a-z]+)="((?:[^"\\\n]|\\.)*)"\})? (-?[0-9.e+]+)')


def test_metrics_are_valid_prometheus_text(tmp_path: Path) -> None:
    one = summary(page("a"), failed("a", 1))
    one.seconds['odd"\\\n'] = 1.5
    gauges = PipelineGauges({"decode": 3}, {"decode": 1}, time=1e9, is_finished=True)
    write_metrics(tmp_path / "ocr2.prom", one, gauges)
    text = (tmp_path / "ocr2.prom").read_text()
    assert text == metrics_text(one, gauges) and text.endswith("\n")
    values: dict[str, float] = {}
    typed: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed and kind == ("counter" if name.endswith("_total") else "gauge")
            typed.add(name)
        elif not line.startswith("# HELP "):
            found = LINE.fullmatch(line)
            assert found and found.group(1) in typed, line
            values[found.group(1) + (found.group(4) or "")] = float(found.group(5))
    assert values["ocr2_pages_totalok"] == 1 and values["ocr2_pages_totalfailed"] == 1
    assert values["ocr2_stage_seconds_totaldecode"] == 3.0 + 1.0
    assert values["ocr2_queue_depthdecode"] == 3 and values["ocr2_exit_code"] == 5
    assert values["ocr2_worker_restarts_totaldecode"] == 1 and values["ocr2_run_finished"] == 1


def test_a_metrics_file_that_cannot_be_written_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no/ocr2\.prom"):
        write_metrics(tmp_path / "no" / "ocr2.prom", summary(), PipelineGauges())
