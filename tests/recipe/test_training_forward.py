"""The training forwards compute what the program computes, and a stopped stage goes on where it
was."""

from __future__ import annotations

import json
import multiprocessing
import signal
import sys
from random import Random

import pytest
import torch
import torch.nn.functional as F


def test_a_crop_of_one_window_equals_the_programs_block() -> None:
    from nanotrain import sight, sizes

    model = sizes.new_model()
    for table in (
        model.vision.sam.blocks[1].attn.rel_pos_h,
        model.vision.sam.blocks[1].attn.rel_pos_w,
    ):
        torch.nn.init.normal_(table, std=0.3)
    x = torch.randn(2, 16, 16, 128)
    block = model.vision.sam.blocks[1]
    with torch.no_grad():
        assert torch.allclose(sight._crop_block(block, x, 64), block(x), atol=2e-5)


def test_the_global_block_sized_for_tiles_equals_the_programs() -> None:
    from nanotrain import sight, sizes

    block = sizes.new_model().vision.sam.blocks[2]
    x = torch.randn(1, 48, 48, 128)
    with torch.no_grad():
        assert torch.allclose(sight._crop_block(block, x, 48), block(x), atol=2e-5)


def test_whole_views_of_tokens_equal_the_programs_query_encoder() -> None:
    from nanotrain import sight, sizes

    vision = sizes.new_model().vision
    image = torch.randn(2, 144, 256)
    with torch.no_grad():
        tokens, _ = sight.see_tokens(vision, image, torch.arange(144).expand(2, -1), 144)
        expected = vision.projector(vision.query_encoder(image))
    assert torch.allclose(tokens, expected, atol=2e-4)


def test_two_prompts_after_one_page_cost_what_each_costs_alone(two_fonts, plain_words) -> None:
    from nanotrain import batches, reading, sizes
    from nanotrain.train_reader import IdealEyes, text_of

    model = sizes.new_model()
    batch = batches.page_batch(Random(1), two_fonts, "note", 2, max_characters=30, blank_share=1.0)
    kept = torch.from_numpy(batch.kept)
    with torch.no_grad():
        visual = IdealEyes(256)(
            torch.from_numpy(batch.slots).long(), kept, 0, model.vision.view_separator
        )
        texts = [text_of(rows, "cpu") for rows in batch.texts]
        both = reading.read(
            model.decoder,
            reading.ReadHeads(256, sizes.NANO.decoder.num_layers),
            visual,
            kept,
            torch.from_numpy(batch.token_places),
            torch.from_numpy(batch.slots),
            texts,
            num_visual=257,
            noise=0.0,
        )
        logits, targets, weights = [], [], []
        for text in texts:
            start = model.decoder.embed.weight[0].expand(2, 1, -1)
            h = model.decoder(torch.cat((start, visual, model.decoder.embed(text.ids)), 1))[:, 258:]
            logits.append(h[text.targets >= 0])
            targets.append(text.targets[text.targets >= 0])
            weights.append(
                torch.where(reading.at_turn(text), reading.TURNS, 1.0)[text.targets >= 0]
            )
    wrong = F.cross_entropy(torch.cat(logits), torch.cat(targets), reduction="none")
    weight = torch.cat(weights)
    expected = (wrong * weight).sum() / weight.sum()
    assert both.text.item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_turn_is_the_end_of_a_line_or_text_and_the_next_lines_first_two_characters() -> None:
    from nanotrain import reading
    from nanotrain.vocabulary import EOS_ID, NEWLINE_ID

    written = [50, 51, NEWLINE_ID, 52, 53, 54, EOS_ID]
    targets = torch.tensor([[-1, *written]])
    ids = torch.tensor([[7, 7, *written[:-1]]])
    text = reading.Text(ids, targets, *[targets] * 3, torch.zeros(1, 8, 2))
    turned = [written[i] for i in reading.at_turn(text)[0, 1:].nonzero()[:, 0]]
    assert turned == [NEWLINE_ID, 52, 53, EOS_ID]


LOSSES = [
    *["text", "guide", "place", "slot", "row", "line", "unpack", "beside", "balance"],
    *["right", "turned"],
]


@pytest.mark.parametrize(
    ("half", "columns"), [(None, [3, 2, 1, 3]), (0, [3, 2, 0, 0]), (1, [0, 0, 1, 3])]
)
def test_a_head_of_one_half_is_to_look_at_the_cell_for_its_lines_and_at_bos_for_others(
    half, columns
) -> None:
    from nanotrain.reading import Text, _chance_on_cell

    slots = torch.tensor([[0, 7, 8, 15]])
    cells = torch.tensor([[2, 1, 0, 2]])
    text = Text(slots, slots, cells, slots, slots, torch.zeros(1, 4, 2))
    shares = torch.rand(1, 4, 8)
    aimed = shares[0, torch.arange(4), columns].log()  # columns: BOS, then the cells
    assert torch.equal(_chance_on_cell(shares, text, half)[0], aimed)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_forward_for_a_gpu_has_the_losses_and_gradients_of_the_plain_one(
    precision, two_fonts, plain_words, monkeypatch
) -> None:
    from nanotrain import batches, reading, sizes
    from nanotrain.train_reader import IdealEyes, ideal_losses

    model = sizes.new_model()
    ideal, heads = IdealEyes(256), reading.ReadHeads(256, sizes.NANO.decoder.num_layers)
    batch = batches.page_batch(Random(1), two_fonts, "note", 2, max_characters=30)

    def run() -> tuple[reading.ReadLosses, torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            separator = model.vision.view_separator.detach()
            out = ideal_losses(model.decoder, ideal, separator, heads, batch, "cpu", noise=0.0)
        out.total().backward()
        grads = [p.grad.flatten() for p in model.decoder.parameters() if p.grad is not None]
        return out, torch.cat(grads)

    plain, plain_grad = run()
    monkeypatch.setattr(reading, "FUSED", ("cpu",))
    fused, fused_grad = run()
    near = 1e-4 if precision == torch.float32 else 2e-2
    for name in LOSSES:
        expected = getattr(plain, name).item()
        assert getattr(fused, name).item() == pytest.approx(expected, rel=near, abs=near), name
    assert torch.allclose(fused.looked, plain.looked, atol=near)
    gap = (fused_grad - plain_grad).norm() / plain_grad.norm()
    assert gap < (1e-3 if precision == torch.float32 else 0.1)


def test_left_out_blank_cells_keep_the_others_in_place(two_fonts, plain_words) -> None:
    from nanotrain import batches

    whole = batches.page_batch(Random(1), two_fonts, "slide", 2, max_characters=30, blank_share=1.0)
    thin = batches.page_batch(Random(1), two_fonts, "slide", 2, max_characters=30, blank_share=0.0)
    assert thin.kept.shape[1] < whole.kept.shape[1] == 545
    for row in range(2):
        for before, after in zip(whole.texts, thin.texts, strict=True):
            known = before.cells[row] >= 0
            assert (thin.kept[row][after.cells[row][known]] == before.cells[row][known]).all()


def test_self_fed_inputs_are_the_decoders_own_and_the_targets_the_truth() -> None:
    from nanotrain import reading

    ids = torch.tensor([[7, 8, 50, 51, 52, 1]])
    targets = torch.tensor([[-1, 50, 51, 52, -1, -1]])
    text = reading.Text(ids, *[targets] * 4, torch.zeros(1, 6, 2))
    guessed = torch.tensor([[-1, 60, 51, 62, -1, -1]])
    (fed,) = reading.self_fed([text], guessed, 1.0)
    assert fed.ids.tolist() == [[7, 8, 60, 51, 62, 1]]
    assert fed.targets is targets
    assert reading.self_fed([text], guessed, 0.0)[0].ids.equal(ids)


@pytest.mark.parametrize("stage", ["eyes", "reader"])
def test_a_stopped_stage_goes_on_at_its_step(
    stage, tmp_path, two_fonts, plain_words, monkeypatch
) -> None:
    from nanotrain import fonts, train_eyes, train_reader

    monkeypatch.setattr(fonts, "load_fonts", lambda held_out: two_fonts)
    module = {"eyes": train_eyes, "reader": train_reader}[stage]
    sizes_of = {"eyes": ["--tiles", "1", "--globals", "1"], "reader": ["--max-characters", "20"]}[
        stage
    ]
    monkeypatch.setitem(train_reader.MIXES, "notes", {"note": 1})
    monkeypatch.setattr(train_eyes, "CHECKED_CROPS", 1)
    monkeypatch.setattr(train_reader, "CHECKED_PAGES", 1)
    common = ["prog", "--state", str(tmp_path), "--steps", "3", *sizes_of]
    monkeypatch.setattr(sys, "argv", [*common, "--stop-after", "2"])
    module.main()
    first = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
    monkeypatch.setattr(sys, "argv", [*common, "--resume"])
    module.main()
    second = torch.load(tmp_path / f"{stage}.pt", weights_only=True)
    assert (first["step"], second["step"]) == (2, 3)
    # Momentum is carried over: the third step's is mostly the first two's.
    old = next(iter(first["optimisers"]["muon"]["state"].values()))["momentum"]
    new = next(iter(second["optimisers"]["muon"]["state"].values()))["momentum"]
    assert F.cosine_similarity(old.flatten(), new.flatten(), dim=0) > 0.1
    last = json.loads((tmp_path / f"{stage}.log").read_text().splitlines()[-1])
    assert last["step"] == 3


@pytest.mark.parametrize("stage", ["eyes", "reader"])
def test_a_stage_ends_its_feeders_whatever_sigterm_does_here(
    stage, tmp_path, two_fonts, plain_words, monkeypatch
) -> None:
    """Libraries install handlers that children inherit: a feeder that leaves in good order waits
    for ever to hand on what nobody takes."""
    from nanotrain import fonts, train_eyes, train_reader

    monkeypatch.setattr(fonts, "load_fonts", lambda held_out: two_fonts)
    monkeypatch.setitem(train_reader.MIXES, "notes", {"note": 1})
    monkeypatch.setattr(train_eyes, "CHECKED_CROPS", 1)
    monkeypatch.setattr(train_reader, "CHECKED_PAGES", 1)
    words = {"eyes": ["--tiles", "9", "--globals", "9"], "reader": ["--max-characters", "20"]}
    argv = ["prog", "--state", str(tmp_path), "--steps", "3", "--stop-after", "1", *words[stage]]
    monkeypatch.setattr(sys, "argv", argv)
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    try:
        {"eyes": train_eyes, "reader": train_reader}[stage].main()
        left = multiprocessing.active_children()
        for child in left:
            child.join(5)
        assert not [child for child in left if child.is_alive()]
    finally:
        for child in multiprocessing.active_children():
            child.kill()
        signal.signal(signal.SIGTERM, before)
