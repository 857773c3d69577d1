"""What a worker's end means for its pages and for the run."""

from __future__ import annotations

import logging

import pytest
import torch

from ocr2cli.errors import EngineError
from ocr2cli.pages import PageError
from ocr2cli.pipeline.failure import describe, tell_death


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_worker_that_ran_out_of_memory_says_so_of_its_pages(error: Exception) -> None:
    failure = describe(error, is_loading=False)
    assert failure.page_error("encode").code == "out_of_memory"
    assert failure.run_error("encode") is None


def test_any_other_error_of_a_worker_is_a_death_and_ends_a_run_only_while_loading() -> None:
    failure = describe(ValueError("odd"), is_loading=False)
    assert failure.page_error("decode").code == "worker_died"
    assert failure.run_error("decode") is None
    loading = describe(ValueError("odd"), is_loading=True).run_error("decode")
    assert isinstance(loading, EngineError) and "could not be loaded" in str(loading)


@pytest.mark.parametrize(
    ("num_held", "num_again", "words"),
    [
        (0, 0, "it held no page"),
        (1, 1, "the page it held is read again"),
        (12, 12, "the 12 pages it held are read again"),
        (1, 0, "the page it held has failed"),
        (2, 0, "the 2 pages it held have failed"),
        (5, 1, "of the 5 pages it held 1 is read again"),
        (5, 4, "of the 5 pages it held 4 are read again"),
    ],
)
def test_a_death_is_told_with_what_becomes_of_the_pages(
    caplog: pytest.LogCaptureFixture, num_held: int, num_again: int, words: str
) -> None:
    fault = PageError("worker_died", "the decode worker was killed by SIGKILL")
    tell_death(fault, 1, num_held=num_held, num_again=num_again)
    assert caplog.messages == [f"the decode worker was killed by SIGKILL; {words}"]


def test_three_deaths_of_a_stage_are_told_to_everybody_and_more_to_who_asks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "ocr2")
    for number in range(1, 6):
        tell_death(PageError("worker_died", "dead"), number, num_held=0, num_again=0)
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING] * 3 + [logging.INFO] * 2
