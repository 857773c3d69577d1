"""What a worker's end means for its pages and for the run."""

from __future__ import annotations

import pytest
import torch

from ocr2cli.errors import EngineError
from ocr2cli.pipeline.failure import describe


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
