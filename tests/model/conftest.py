"""Fixtures of the model tests; the toy itself is in toy_model.py."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_model import TOY, TOY_V1, build_reference, convert, normalise, random_views, randomise

from ocr2cli.model.model import OcrModel
from ocr2cli.model.vision import VisionEncoder

GRIDS = {0: (1, 1), 2: (1, 2), 3: (3, 1), 6: (2, 3)}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where it is not installed."""
    imported = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "numba":
            raise ImportError("no numba here")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.fixture(scope="session")
def reference() -> Any:
    """transformers' model at toy size, eval mode, plain attention, random weights."""
    return build_reference()


@pytest.fixture(scope="session")
def ours(reference: Any) -> OcrModel:
    """Our model holding the reference's weights."""
    model = OcrModel(TOY).eval()
    model.load_state_dict(convert(reference.state_dict()), strict=True)
    return model


@pytest.fixture(scope="session")
def vision_v1() -> VisionEncoder:
    model = VisionEncoder(TOY_V1).eval()
    randomise(model, seed=3)
    return model


@pytest.fixture(scope="session")
def views() -> Tensor:
    """uint8 [1, 3, 1024, 1024]: a global view of noise."""
    return random_views(1, 1024, seed=1)


@pytest.fixture(scope="session")
def tiles() -> Tensor:
    """uint8 [6, 3, 768, 768]."""
    return random_views(6, 768, seed=2)


@pytest.fixture(scope="session")
def reference_pages(reference: Any, views: Tensor, tiles: Tensor) -> dict[int, Tensor]:
    """The reference's rows of a page with 0, 2, 3 and 6 tiles: [144 N + 257, 32] each."""
    with torch.no_grad():
        return {
            count: reference.model.get_image_features(
                normalise(views), normalise(tiles[:count]) if count else None, [count]
            ).pooler_output[0]
            for count in GRIDS
        }


@pytest.fixture(scope="session")
def our_pages(ours: OcrModel, views: Tensor, tiles: Tensor) -> dict[int, Tensor]:
    """Ours, through `encode_views` and `assemble`."""
    with torch.no_grad():
        tokens, whole = ours.vision.encode_views(tiles), ours.vision.encode_views(views)[0]
        return {
            count: ours.vision.assemble(tokens[:count], whole, grid)
            for count, grid in GRIDS.items()
        }
