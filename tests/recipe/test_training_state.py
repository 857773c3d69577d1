"""The committed training state: small parts that give the state back."""

from __future__ import annotations

import json
import sys
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def test_a_state_comes_back_from_its_parts_and_is_never_overwritten(tmp_path, monkeypatch) -> None:
    """Without momenta, and with the weights as they are published."""
    from nanotrain import state

    monkeypatch.setattr(state, "PART_BYTES", 1000)
    weights, parts = torch.randn(900), ("vision", "decoder", "heads")
    at = tmp_path / "state"
    at.mkdir()
    torch.save({"ideal": {"w": weights}, "decoder": {"w": weights}}, at / "codes.pt")
    joint = {part: {"w": weights * index} for index, part in enumerate(parts, 1)}
    torch.save({**joint, "eyes": {"muon": weights}, "reader": {}, "step": 7}, at / "joint.pt")
    state.pack(at, tmp_path / "kept")
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) > 2 and all(part.stat().st_size <= 1000 for part in kept)
    state.unpack(tmp_path / "new", tmp_path / "kept")
    back = torch.load(tmp_path / "new" / "joint.pt", weights_only=True)
    assert set(back) == {*parts, "step"} and back["step"] == 7
    for index, part in enumerate(parts, 1):
        assert torch.equal(back[part]["w"], (weights * index).bfloat16().float())
    codes = torch.load(tmp_path / "new" / "codes.pt", weights_only=True)
    assert set(codes) == {"ideal"} and codes["ideal"]["w"].dtype == torch.float32
    with pytest.raises(FileExistsError, match="Move it away"):
        state.unpack(tmp_path / "new", tmp_path / "kept")


def test_joint_training_starts_from_both_stages_and_goes_on_where_it_stopped(
    tmp_path, two_fonts, both_stages, monkeypatch
) -> None:
    from nanotrain import draw, drawn, pages, train_joint

    model, words = both_stages
    rng = Random(1)
    (tmp_path / "drawn").mkdir()
    for index in range(5):
        page = pages.random_page(rng, "note", two_fonts, max_characters=20)
        picture = np.asarray(draw.draw_page(page, rng))
        np.savez(tmp_path / f"drawn/1-{index}-note.npz", **drawn.page_arrays(page, picture, True))
    common = [*words, "--mix", "note=1", "--ideal", "letter=1", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", [*common, "--stop-after", "2"])
    train_joint.main()
    first = torch.load(tmp_path / "joint.pt", weights_only=True)
    name = "query_encoder.layers.0.attn.qkv.weight"
    moved = (first["vision"][name] - model.vision.state_dict()[name]).norm()
    assert 0 < moved < 0.2 * first["vision"][name].norm()
    monkeypatch.setattr(sys, "argv", [*common, "--resume"])
    train_joint.main()
    second = torch.load(tmp_path / "joint.pt", weights_only=True)
    assert (first["step"], second["step"]) == (2, 3)
    # Momentum is carried over: the third step's is mostly the first two's.
    old, new = (
        next(iter(s["eyes"]["muon"]["state"].values()))["momentum"] for s in (first, second)
    )
    assert F.cosine_similarity(old.flatten(), new.flatten(), dim=0) > 0.1
    last = json.loads((tmp_path / "joint.log").read_text("utf-8").splitlines()[-1])
    assert last["step"] == 3 and "held_out_right_note" in last


def test_without_drawn_pages_only_the_decoder_learns(tmp_path, both_stages, monkeypatch) -> None:
    from nanotrain import train_joint

    model, words = both_stages
    args = [*words, "--mix", "", "--ideal", "note=1,note/slide=1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", args)
    train_joint.main()
    after = torch.load(tmp_path / "joint.pt", weights_only=True)
    assert after["step"] == 2
    before = {"vision": model.vision.state_dict(), "decoder": model.decoder.state_dict()}
    for part, moves in (("vision", False), ("decoder", True)):
        moved = any(
            not torch.equal(value, before[part][name]) for name, value in after[part].items()
        )
        assert moved == moves, part


def test_by_the_clock_and_without_momenta_it_goes_on_from_weights_alone(
    tmp_path, both_stages, monkeypatch
) -> None:
    """As on a machine lent for some minutes: pages are drawn by the feeders themselves."""
    from nanotrain import train_joint

    model, words = both_stages
    weights = {"vision": model.vision.state_dict(), "decoder": model.decoder.state_dict()}
    heads = torch.load(tmp_path / "reader.pt", weights_only=True)["heads"]
    torch.save({**weights, "heads": heads, "step": 40}, tmp_path / "joint.pt")
    drawn = words.index("--drawn")
    args = [*words[:drawn], *words[drawn + 2 :], "--mix", "note=1", "--ideal", "", "--resume"]
    monkeypatch.setattr(sys, "argv", [*args, "--minutes", "0.01", "--feeders", "2"])
    train_joint.main()
    after = torch.load(tmp_path / "joint.pt", weights_only=True)
    assert after["step"] > 40 and "eyes" in after
    # The rate rises anew, from nearly nothing.
    name = "query_encoder.layers.0.attn.qkv.weight"
    moved = (after["vision"][name] - weights["vision"][name]).norm()
    assert 0 < moved < 0.2 * weights["vision"][name].norm()


def test_eyes_at_rate_zero_are_looked_through_and_stay_as_they_are(
    tmp_path, both_stages, monkeypatch
) -> None:
    from nanotrain import train_joint

    model, words = both_stages
    drawn = words.index("--drawn")
    args = [*words[:drawn], *words[drawn + 2 :], "--mix", "note=1", "--ideal", ""]
    args += ["--feeders", "1", "--eyes-lr", "0", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", args)
    train_joint.main()
    after = torch.load(tmp_path / "joint.pt", weights_only=True)
    for name, value in model.vision.state_dict().items():
        assert torch.equal(after["vision"][name], value), name
    name = "layers.1.attn.qkv.weight"
    assert not torch.equal(after["decoder"][name], model.decoder.state_dict()[name])
    last = json.loads((tmp_path / "joint.log").read_text("utf-8").splitlines()[-1])
    assert last["far_0seen"] > 0


def test_processes_that_share_a_step_go_by_the_clock_of_the_first(monkeypatch) -> None:
    """Else one would end while the others wait for its gradients."""
    from nanotrain import train_joint

    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, source: tensor.fill_(0.25))
    assert train_joint.done_by_clock(0.0, 5.0, ranks=2) == 0.25
    assert train_joint.done_by_clock(0.0, 5.0, ranks=1) > 1
    assert train_joint.done_by_clock(0.0, 0.0, ranks=2) is None


def test_the_mean_of_states_is_of_decoder_and_heads_and_asks_for_the_same_eyes(tmp_path) -> None:
    from nanotrain.average import average

    eyes = {"w": torch.randn(3)}
    folders = [tmp_path / name for name in "ab"]
    for folder, value, step in zip(folders, (1.0, 3.0), (5, 8), strict=True):
        folder.mkdir()
        part = {"w": torch.full((2,), value)}
        state = {"vision": eyes, "decoder": part, "heads": part, "eyes": {}, "step": step}
        torch.save(state, folder / "joint.pt")
        torch.save({"ideal": {}}, folder / "codes.pt")
    average(folders, tmp_path / "mean")
    mean = torch.load(tmp_path / "mean" / "joint.pt", weights_only=True)
    assert set(mean) == {"vision", "decoder", "heads", "step"} and mean["step"] == 8
    assert torch.equal(mean["vision"]["w"], eyes["w"])
    assert mean["decoder"]["w"].tolist() == mean["heads"]["w"].tolist() == [2.0, 2.0]
    assert (tmp_path / "mean" / "codes.pt").exists()
    torch.save({**mean, "vision": {"w": -eyes["w"]}}, folders[0] / "joint.pt")
    with pytest.raises(ValueError, match=r"the eyes of .*a are not those of .*b"):
        average(folders, tmp_path / "mean")


def test_a_running_mean_goes_with_the_state_and_is_what_a_mean_of_states_takes(
    tmp_path, both_stages, monkeypatch
) -> None:
    from nanotrain import train_joint
    from nanotrain.average import average

    _, words = both_stages
    drawn = words.index("--drawn")
    args = [*words[:drawn], *words[drawn + 2 :], "--mix", "note=1", "--ideal", ""]
    args += ["--feeders", "1", "--steps", "4", "--mean-over", "50"]
    name, passed = "layers.1.attn.qkv.weight", []
    step = train_joint.JointTrainer.step

    def watched(trainer, *args, **words):
        found = step(trainer, *args, **words)
        passed.append(trainer.decoder.state_dict()[name].clone())
        return found

    monkeypatch.setattr(train_joint.JointTrainer, "step", watched)
    monkeypatch.setattr(sys, "argv", [*args, "--stop-after", "2"])
    train_joint.main()
    monkeypatch.setattr(sys, "argv", [*args, "--resume"])
    train_joint.main()
    state = torch.load(tmp_path / "joint.pt", weights_only=True)
    assert len(passed) == 4 and state["mean"]["num_steps"] == 4
    torch.testing.assert_close(state["mean"]["decoder"][name], torch.stack(passed).mean(0))
    assert not torch.equal(state["decoder"][name], state["mean"]["decoder"][name])
    torch.save({"ideal": {}}, tmp_path / "codes.pt")
    average([tmp_path], tmp_path / "mean")
    mean = torch.load(tmp_path / "mean" / "joint.pt", weights_only=True)
    assert torch.equal(mean["decoder"][name], state["mean"]["decoder"][name])
    eye = "query_encoder.layers.0.attn.qkv.weight"
    assert torch.equal(mean["vision"][eye], state["mean"]["vision"][eye])
    assert not torch.equal(mean["vision"][eye], state["vision"][eye])
    assert set(mean["heads"]) == set(state["heads"])


def test_a_running_mean_forgets_what_is_older_than_it_goes_back() -> None:
    from nanotrain.average import RunningMean

    part = torch.nn.Linear(1, 1, bias=False)
    mean = RunningMean(over=2)
    for value in (8.0, 4.0, 2.0, 2.0):
        part.weight.data.fill_(value)
        mean.add({"decoder": part})
    assert mean.parts["decoder"]["weight"].item() == 3.0  # 8, 6, 4, 3
