"""The books that both runners keep: one job in, one result out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toys import jobs

from ocr2cli.pages import PageKey, PageResult, Status
from ocr2cli.pipeline.ledger import Ledger


def test_a_page_may_come_again_once_it_is_done_or_given_up() -> None:
    """As the same page does that a server is sent twice."""
    ledger, (job,) = Ledger(1), jobs(1)
    ledger.finish(ledger.admit(job), PageResult(job.key, Status.OK))
    ledger.drop(ledger.admit(job))
    with pytest.raises(ValueError, match="submitted twice"):
        for _ in range(2):
            ledger.admit(job)
    assert (len(ledger), ledger.num_in, ledger.num_out, ledger.num_dropped) == (1, 3, 1, 1)
    ledger.check()


def test_a_result_is_of_the_file_that_was_read_and_of_no_other_page() -> None:
    ledger, (job,) = Ledger(1), jobs(1)
    ticket = ledger.admit(job)
    with pytest.raises(ValueError, match="a result for other page 1 came from doc page 1"):
        ledger.finish(ticket, PageResult(PageKey("other", 0), Status.OK))
    own = PageResult(job.key, Status.OK, input_sha256="cd" * 32)
    assert ledger.finish(ticket, own) is own, "the file may have changed since it was listed"
    unknown = ledger.finish(ledger.admit(job), replace(own, input_sha256=""))
    assert unknown.input_sha256 == job.sha256
