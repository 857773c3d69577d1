"""A decoder that gets more layers reads what it read, and can learn with the new ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch


def _state(num_layers: int):
    from nanotrain import reading, sizes

    from ocr2cli.model.decoder import Decoder

    torch.manual_seed(3)
    decoder = Decoder(replace(sizes.NANO.decoder, num_layers=num_layers)).eval()
    heads = reading.ReadHeads(256, num_layers)
    return decoder, {
        "vision": {"w": torch.ones(2)},
        "decoder": decoder.state_dict(),
        "heads": heads.state_dict(),
        "eyes": {},
        "step": 9,
    }


def test_a_grown_decoder_gives_the_same_logits_and_its_new_layers_have_gradients() -> None:
    from nanotrain import grow

    small, state = _state(3)
    large, _ = _state(5)
    grown = grow.grown(state, num_layers=5, after=1)
    large.load_state_dict(grown["decoder"])
    x = torch.randn(2, 7, 256)
    with torch.no_grad():
        assert torch.equal(large(x), small(x))
    large(x).sum().backward()
    for index in (2, 3):
        layer = large.layers[index]
        assert layer.attn.out.weight.grad.abs().max() > 0
        assert layer.mlp.experts_down.grad.abs().max() > 0
    assert (grown["step"], set(grown)) == (9, {"vision", "decoder", "heads", "step"})
    heads, old = grown["heads"], state["heads"]
    for new, kept in ((0, 0), (1, 1), (2, 1), (3, 1), (4, 2)):
        assert torch.equal(heads[f"row_head.{new}.weight"], old[f"row_head.{kept}.weight"])


def test_a_decoder_is_never_cut() -> None:
    from nanotrain import grow

    with pytest.raises(ValueError, match="has 3 layers"):
        grow.grown(_state(3)[1], num_layers=2, after=0)
