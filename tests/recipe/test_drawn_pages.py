"""What eyes and reader are trained on together is the page as the program would see it."""

from __future__ import annotations

from argparse import Namespace
from random import Random

import numpy as np
import pytest
import torch


@pytest.fixture
def drawn_page(two_fonts, plain_words):
    from nanotrain import draw, drawn, pages

    page = pages.random_page(Random(3), "note", two_fonts, max_characters=60)
    picture = np.asarray(draw.draw_page(page, Random(4), degrade=False))
    return page, picture, drawn.page_arrays(page, picture, True)


@pytest.mark.parametrize("size", [(500, 333), (1191, 1684), (1920, 1080)])
def test_crops_are_those_of_the_programs_views(size) -> None:
    from nanotrain.drawn import page_crops

    from ocr2cli.config import TileConfig
    from ocr2cli.document.tiles import make_views
    from ocr2cli.pages import PageImage, PageKey

    noise = np.random.default_rng(1)
    # Far enough from black and white that no channel is cut off where an edge overshoots.
    coarse = noise.integers(80, 170, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    picture = coarse.repeat(8, 0).repeat(8, 1)[: size[1], : size[0]]
    views = make_views(PageImage(PageKey("a", 0), picture, 144.0), TileConfig())
    found = page_crops(picture, True)
    at = 0
    for view in [*views.tiles, views.global_view]:
        grey = view.transpose(1, 2, 0).astype(np.float32) @ np.array([0.299, 0.587, 0.114])
        for row in range(0, grey.shape[0], 256):
            for column in range(0, grey.shape[1], 256):
                expected = grey[row : row + 256, column : column + 256]
                assert np.abs(found[at] - expected).max() < 2.5
                at += 1
    assert at == len(found)


def test_fresh_pages_come_in_batches_of_one_kind_and_are_used_more_than_once(
    two_fonts, plain_words, monkeypatch
) -> None:
    from nanotrain import drawn

    drawn_pages = 0
    draw_arrays = drawn.draw_arrays

    def counted(*args, **more):
        nonlocal drawn_pages
        drawn_pages += 1
        return draw_arrays(*args, **more)

    monkeypatch.setattr(drawn, "draw_arrays", counted)
    source = drawn.FreshPages(two_fonts, max_characters=30, globals_share=0.0, uses=2)
    rng = Random(5)
    like = drawn.Like(view=0.5, length=0.5)
    batches = [source.batch(rng, "slide", 4, 0.1, like) for _ in range(3)]
    assert drawn_pages == 4 + 2 + 2
    assert all(len(batch.page.kept) == 4 and batch.page.num_tiles == 2 for batch in batches)
    assert all(len(batch.pixels) == batch.is_seen.sum() for batch in batches)
    assert not any(batch.has_global for batch in batches)


def test_a_batch_of_one_page_gets_new_ones_too(two_fonts, plain_words) -> None:
    from nanotrain import drawn

    source = drawn.FreshPages(two_fonts, max_characters=20, globals_share=0.0, uses=3)
    rng, like = Random(5), drawn.Like(view=0.5, length=0.5)
    texts = {source.batch(rng, "note", 1, 0.1, like).page.texts[0].ids.tobytes() for _ in range(12)}
    assert 3 <= len(texts) <= 8


@pytest.mark.parametrize("view", [0.2, 0.8])
def test_what_pages_should_be_like_decides_their_views_and_length(
    view, two_fonts, plain_words
) -> None:
    from nanotrain import drawn

    lengths = []
    for length in (0.0, 0.99):
        source = drawn.FreshPages(two_fonts, max_characters=90, globals_share=0.5, uses=2)
        for seed in (5, 6):  # there is a choice from the second batch on
            batch = source.batch(Random(seed), "slide", 2, 0.1, drawn.Like(view, length))
        assert batch.has_global == (view < 0.5)
        lengths.append(batch.page.texts[0].num_targets)
    assert lengths[0] < lengths[1]


def test_processes_that_share_a_step_learn_from_other_pages_of_the_same_kinds(
    two_fonts, plain_words, monkeypatch
) -> None:
    from nanotrain import fonts, groups

    monkeypatch.setattr(fonts, "load_fonts", lambda held_out: two_fonts)
    args = Namespace(
        drawn=None, globals_=0.5, uses=2, max_characters=40, whole=0.5,
        mix="note/slide=1,slide/note=1", ideal="letter/poster/note=1",
    )  # fmt: skip
    ranks = [groups.joint_groups(args, seed, 7) for seed in (1, 2)]
    kinds, pixels = ([], []), []
    for _ in range(4):
        for found, rank in zip(kinds, ranks, strict=True):
            seen, ideal = next(rank)
            found += [(batch.has_global, batch.page.num_tiles) for batch in seen]
            found += [batch.num_tiles for batch in ideal]
            pixels.append(seen[0].pixels)
    assert kinds[0] == kinds[1] and len(set(kinds[0])) > 3
    assert not any(np.array_equal(a, b) for a, b in zip(pixels[::2], pixels[1::2], strict=True))


def test_the_next_batch_is_taken_while_the_last_one_is_learned_from() -> None:
    from nanotrain.moving import Ahead

    taken = []

    def take() -> np.ndarray:
        if len(taken) == 3:
            raise RuntimeError("a feeder ended")
        taken.append(len(taken))
        return np.array(taken[-1])

    ahead = Ahead(take, "cpu")
    assert int(ahead.take()) == 0
    assert [int(ahead.take()), int(ahead.take())] == [1, 2]
    with pytest.raises(RuntimeError, match="a feeder ended"):
        ahead.take()
    ahead.close()


def test_moved_batches_are_tensors_but_for_what_stays(drawn_page) -> None:
    from nanotrain.drawn import drawn_batch
    from nanotrain.moving import moved

    _, _, arrays = drawn_page
    batch = drawn_batch(Random(1), [arrays], 1.0)
    there = moved([batch], "cpu")[0]
    assert isinstance(there.is_seen, np.ndarray)
    assert torch.equal(there.pixels, torch.from_numpy(batch.pixels))
    assert torch.equal(there.page.texts[0].ids, torch.from_numpy(batch.page.texts[0].ids))
    assert there.page.texts[0].num_targets == (batch.page.texts[0].targets >= 0).sum() > 0


def test_crops_tell_the_eyes_what_the_whole_view_does(drawn_page) -> None:
    from nanotrain import album, sizes
    from nanotrain.drawn import DrawnBatch, drawn_batch
    from nanotrain.seeing_pages import page_tokens
    from nanotrain.train_reader import IdealEyes

    _, picture, arrays = drawn_page
    torch.manual_seed(0)
    vision = sizes.new_model().vision.eval()
    batch: DrawnBatch = drawn_batch(Random(1), [arrays], 1.0)
    with torch.no_grad():
        tokens, far = page_tokens(vision, IdealEyes(256), batch, "cpu", recolour=False)
    level = np.repeat(picture.mean(-1, keepdims=True), 3, -1).round().astype(np.uint8)
    whole = album.visual_tokens(vision, level)
    assert tokens.shape[1:] == whole.shape
    assert torch.isfinite(far)
    gap = (tokens[0] - whole).norm() / whole.norm()
    assert gap < 0.15


def test_a_batch_points_at_kept_cells_that_hold_the_characters(drawn_page) -> None:
    from nanotrain.characters import CLASS_OF
    from nanotrain.drawn import drawn_batch
    from nanotrain.vocabulary import decode

    _, _, arrays = drawn_page
    batch = drawn_batch(Random(2), [arrays], 0.1)
    text = batch.page.texts[0]
    right = wrong = 0
    for at in np.nonzero(text.cells[0] >= 0)[0]:
        char = decode([int(text.targets[0, at])])
        if char.strip() and char in CLASS_OF:
            found = CLASS_OF[char] in batch.page.slots[0, text.cells[0, at]]
            right, wrong = right + found, wrong + (not found)
    assert right > 20 and wrong == 0


def test_only_blank_crops_are_left_unseen_and_their_tokens_out(two_fonts, plain_words) -> None:
    from nanotrain import draw, drawn, pages, sizes
    from nanotrain.seeing_pages import page_tokens
    from nanotrain.train_reader import IdealEyes

    arrays = []
    for seed in (1, 5):
        page = pages.random_page(Random(seed), "letter", two_fonts, max_characters=60)
        picture = np.asarray(draw.draw_page(page, Random(4), degrade=False))
        arrays.append(drawn.page_arrays(page, picture, seed == 0))
    batch = drawn.drawn_batch(Random(2), arrays, 0.1)
    assert 0 < batch.is_seen.sum() < 0.8 * batch.is_seen.size
    crop_of = drawn.crop_of_tokens(6)
    for row, kept, slots in zip(batch.is_seen, batch.page.kept, batch.slots, strict=True):
        assert row[crop_of[kept[:-1]]].all()
        blank = (slots[:864] == 0).all(1)
        assert blank[~row[crop_of[:864]]].all()
    torch.manual_seed(0)
    vision = sizes.new_model().vision.eval()
    whole = drawn.drawn_batch(Random(2), arrays, 1.0)
    assert whole.is_seen.all()
    with torch.no_grad():
        some, _ = page_tokens(vision, IdealEyes(256), batch, "cpu", recolour=False)
        every, _ = page_tokens(vision, IdealEyes(256), whole, "cpu", recolour=False)
    is_seen = torch.from_numpy(batch.is_seen)[:, crop_of[:864]]
    assert (some[:, :864][~is_seen] == 0).all()
    # The query encoder looks at the whole view: a blank neighbour missing changes little.
    gap = (some[:, :864] - every[:, :864])[is_seen].norm() / every[:, :864][is_seen].norm()
    assert gap < 0.3


def test_a_nearly_blank_page_has_room_for_what_a_full_one_keeps(two_fonts, plain_words) -> None:
    from nanotrain import draw, drawn, pages

    arrays = []
    for most in (12, 900):
        page = pages.random_page(Random(2), "letter", two_fonts, max_characters=most)
        picture = np.asarray(draw.draw_page(page, Random(4), degrade=False))
        arrays.append(drawn.page_arrays(page, picture, False))
    for seed in range(40):
        batch = drawn.drawn_batch(Random(seed), arrays, 0.1)
        assert batch.page.kept.shape[0] == 2
        assert (np.diff(batch.page.kept) > 0).all()


def test_a_stock_gives_back_the_crops_it_was_given(
    tmp_path, two_fonts, plain_words, monkeypatch
) -> None:
    from nanotrain import scenes, stock

    monkeypatch.setattr(stock, "CHUNK", 4)
    crops = scenes.crop_batch(Random(1), two_fonts, 768, 4)
    stock.write_chunk(tmp_path / "768-1-00000.npz", crops)
    kept = stock.Stock(tmp_path)
    assert kept.batch(Random(1), 1024, 4, 1) is None
    batch = kept.batch(Random(1), 768, 9, 9)
    assert batch is not None and batch.pixels.shape == (9, 256, 256) and batch.group == 9
    for pixels, slots in zip(batch.pixels, batch.slots, strict=True):
        same = [at for at in range(4) if (stock.grey(crops.pixels)[at] == pixels).all()]
        assert any((crops.slots[at] == slots).all() for at in same)
