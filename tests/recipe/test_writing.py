"""The decoder's own writing as input, and what is taught to come after it."""

from __future__ import annotations

import json
import sys
from random import Random

import numpy as np
import pytest
import torch


def ids_of(text: str) -> np.ndarray:
    return np.array([ord(char) for char in text], np.int64)


def follows(written: str, truth: str) -> str:
    """What should come after each prefix: the truth's character, $ for its end, ~ where unknown."""
    from nanotrain.writing import what_follows

    found = what_follows(ids_of(written), ids_of(truth))
    return "".join("~" if place < 0 else [*truth, "$"][place] for place in found)


@pytest.mark.parametrize(
    ("written", "truth", "expected"),
    [
        ("abc", "abc", "abc$"),
        ("", "abc", "a"),
        ("axc", "abc", "abc$"),  # a wrong one: it goes on behind it
        ("abbcd", "abcd", "abccd$"),  # one too many: what was due still is
        ("acd", "abcd", "abd$"),  # one left out: behind the one that came instead
    ],
)
def test_after_a_slip_the_truth_goes_on(written: str, truth: str, expected: str) -> None:
    assert follows(written, truth) == expected


def test_a_last_line_written_twice_should_have_stopped_and_should_stop_now() -> None:
    truth = "one line\nand another"
    found = follows(truth + "\nand an", truth)
    assert found == truth + "$" * len("\nand an$")


def test_after_a_line_written_twice_the_next_one_is_due() -> None:
    truth = "first\nsecond one\nTHIRD LINE OF TEXT"
    written = "first\nsecond one\nsecond one\nTHIRD"
    found = follows(written, truth)
    assert found[len("first\nsecond one\n")] == "T"  # not the second line again
    assert "~" in found[len("first\nsecond one\nsecon") :]  # lost for a while
    assert found[-2:] == "D "  # found again


def test_a_line_left_out_is_due_before_it_is_passed_over() -> None:
    truth = "first\nsecond one\nTHIRD LINE OF TEXT"
    found = follows("first\nTHIRD LINE OF TEXT", truth)
    assert found[: len("first\n") + 1] == "first\ns"
    assert found[-2:] == "T$"


def test_nothing_is_taught_where_all_is_wrong() -> None:
    found = follows("aaaaxyzxyzxyzxyz", "aaaabcdefghijklmnop")
    assert found.startswith("aaaab") and set(found[9:]) == {"~"}


@pytest.mark.parametrize("seed", range(30))
def test_the_place_is_one_of_least_edit_distance(seed: int) -> None:
    from rapidfuzz.distance import Levenshtein

    rng = Random(seed)
    truth = "".join(rng.choices("abc\n", k=14))
    written = "".join(c for c in truth if rng.random() < 0.9)
    written = written[:9] + "".join(rng.choices("abc\n", k=3)) + written[9:]
    for length, due in enumerate(follows(written, truth)):
        away = [Levenshtein.distance(written[:length], truth[:n]) for n in range(len(truth) + 1)]
        best = {[*truth, "$"][n] for n, distance in enumerate(away) if distance == min(away)}
        assert due == "~" or due in best


def seen_batch(two_fonts, kind: str, count: int):
    from nanotrain import batches

    batch = batches.page_batch(Random(2), two_fonts, kind, count, max_characters=60)
    width = torch.Generator().manual_seed(3)
    batch.tokens = torch.randn(*batch.kept.shape, 256, generator=width).half()
    return batch


@pytest.mark.parametrize("kind", ["note", "slide"])
def test_it_writes_what_the_training_forward_names_likeliest(
    kind: str, two_fonts, plain_words
) -> None:
    """One id after the other over a cache, at the true places of the cells that were kept."""
    from nanotrain import reading, sizes, writing
    from nanotrain.train_reader import text_of

    model = sizes.new_model(seed=4)
    # Weights at random repeat one id; sharper ones write this and that.
    torch.nn.init.normal_(model.decoder.lm_head.weight, std=1.0)
    batch = seen_batch(two_fonts, kind, 2)
    (own,) = writing.written_batches(model.decoder, [batch], [0], Random(1), "cpu")
    assert own.is_written and len(own.texts) == 1
    text = own.texts[0]
    # Every id that was written is to be named, so that each can be compared.
    text.targets[:, :-1] = np.where(text.targets[:, :-1] >= 0, text.ids[:, 1:], -1)
    with torch.no_grad():
        out = reading.read(
            model.decoder,
            reading.ReadHeads(256, sizes.NANO.decoder.num_layers),
            batch.tokens.float(),
            torch.from_numpy(batch.kept),
            torch.from_numpy(batch.token_places),
            torch.from_numpy(batch.slots),
            [text_of(text, "cpu")],
            num_visual=batch.num_visual,
            noise=0.0,
        )
    written = 0
    for row, (guessed, ids) in enumerate(zip(out.guessed.numpy(), text.ids, strict=True)):
        truth = batch.texts[0]
        begun = 0
        while ids[begun] == truth.ids[row][begun]:
            begun += 1
        last = int(np.flatnonzero(text.targets[row] >= 0)[-1])
        known = [at for at in range(begun - 1, last) if guessed[at] >= 0]
        written += len(known)
        assert [guessed[at] for at in known] == [ids[at + 1] for at in known]
    assert written > 20


def test_what_was_given_is_the_truths_and_every_target_has_its_own_cell(
    two_fonts, plain_words
) -> None:
    from nanotrain import writing

    batch = seen_batch(two_fonts, "note", 1)
    truth = writing._row_of(batch.texts[0], 0)
    start = writing._start(truth[1])
    right = truth[1][truth[1] >= 0]
    own = [301, 302, *right[6:9]]  # two that are nowhere in the truth
    ids, targets, cells, slots, rows, places = writing.corrected(truth, 4, own)
    assert ids[: start + 5].tolist() == truth[0][: start + 5].tolist()
    assert ids[start + 5 :].tolist() == own
    assert targets[start:].tolist() == right[: len(ids) - start].tolist()
    for found, known in zip((cells, slots, rows, places), truth[2:], strict=True):
        assert np.array_equal(found, known[: len(found)])


@pytest.mark.parametrize("seed", range(40))
def test_what_should_follow_is_as_if_all_that_was_given_had_been_written(seed: int) -> None:
    from nanotrain.writing import corrected, what_follows

    rng = Random(seed)
    right = ids_of("".join(rng.choices("abc\n", k=40)))
    given, shown = rng.randrange(30), rng.randrange(20)
    own = [*right[shown : shown + 9], *right[given : given + 6]]
    targets = np.concatenate([[-1, -1], right])
    _, found = corrected((np.zeros(42, np.int64), targets), given, own)
    places = what_follows(np.concatenate([right[:given], own]), right[:-1])
    assert found.tolist() == [-1, -1, *np.where(places < 0, -1, right[places])]


def test_a_joint_step_learns_from_its_own_writing(tmp_path, both_stages, monkeypatch) -> None:
    from nanotrain import train_joint

    _, words = both_stages
    drawn = words.index("--drawn")
    args = [*words[:drawn], *words[drawn + 2 :], "--mix", "note=2", "--ideal", ""]
    args += ["--feeders", "1", "--eyes-lr", "0", "--steps", "3", "--replay", "0", "--written", "1"]
    monkeypatch.setattr(sys, "argv", args)
    train_joint.main()
    last = json.loads((tmp_path / "joint.log").read_text("utf-8").splitlines()[-1])
    assert last["text_0written"] > 0 and 0 <= last["right_0written"] < 0.5
