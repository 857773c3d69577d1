"""Our DRY against llama.cpp's own sampler: the same bits for every logit of every case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dry_cases import Case, logits_of

from ocr2cli.config import DryConfig
from ocr2cli.generate.logits import Rules, dry

GOLDEN = Path(__file__).parents[1] / "golden" / "llama" / "dry.json"


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return json.loads(GOLDEN.read_text(encoding="ascii"))["cases"]


def case_of(record: dict[str, Any]) -> Case:
    known = {name: value for name, value in record.items() if name != "changed"}
    return Case(**known | {"history": tuple(record["history"])})


def config_of(case: Case) -> DryConfig:
    return DryConfig(case.multiplier, case.base, case.allowed_length, case.last_n)


def expected_bits(record: dict[str, Any], case: Case) -> np.ndarray:
    bits = logits_of(case).view(np.uint32).copy()
    for token, value in record["changed"]:
        bits[token] = value
    return bits


def test_the_golden_file_holds_penalties_of_many_sizes(records) -> None:
    assert len(records) > 100
    assert sum(bool(record["changed"]) for record in records) > 80
    assert len({bits for record in records for _, bits in record["changed"]}) > 100


def test_every_logit_has_the_bits_that_llama_cpp_gives_it(records) -> None:
    for record in records:
        case = case_of(record)
        ours_V = dry(case.history, torch.from_numpy(logits_of(case)), config_of(case))
        bits = ours_V.numpy().view(np.uint32)
        np.testing.assert_array_equal(bits, expected_bits(record, case), err_msg=str(case))


def test_the_rules_of_a_growing_sequence_take_off_the_same_bits(records) -> None:
    """What the generator uses, token by token, with drafts taken back on the way."""
    for record in records:
        case = case_of(record)
        rules = Rules(None, config_of(case))
        for token in case.history:
            rules.push(token)
            rules.push((token + 1) % case.vocab)
            rules.pop(1)
        logits_V = logits_of(case)
        for token, amount in rules.penalties().items():
            logits_V[token] -= np.float32(amount)
        bits = logits_V.view(np.uint32)
        np.testing.assert_array_equal(bits, expected_bits(record, case), err_msg=str(case))
