"""Batches to the device, one ahead of the trainer.

Knows nothing about what the batches are: dataclasses, lists and tuples of arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

STAYS = {"stays": True}  # metadata of a field that is wanted on the CPU


def moved(value: Any, device: str) -> Any:
    """The same with its arrays as tensors on the device, but for fields marked STAYS."""
    if isinstance(value, np.ndarray):
        tensor = torch.from_numpy(value).to(device)
        if tensor.is_cuda:
            # It was made on another stream than the one that will use it.
            tensor.record_stream(torch.cuda.default_stream(tensor.device))
        return tensor
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: moved(getattr(value, field.name), device)
            for field in dataclasses.fields(value)
            if not field.metadata.get("stays")
        }
        return dataclasses.replace(value, **fields)
    return value


class Ahead:
    """Takes the next batch and moves it while the last one is learned from. On CUDA a copy waits
    for its own stream only, not for the work on the batch before."""

    def __init__(self, take: Callable[[], Any], device: str) -> None:
        self._take, self._device = take, device
        self._stream = torch.cuda.Stream() if device.startswith("cuda") else None
        self._pool = ThreadPoolExecutor(1)
        self._coming = self._pool.submit(self._next)

    def take(self) -> Any:
        """Raises: what the taking raised."""
        batch = self._coming.result()
        self._coming = self._pool.submit(self._next)
        return batch

    def close(self) -> None:
        """What was taken last is thrown away. To be called while there is something to take."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> Any:
        batch = self._take()
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            return moved(batch, self._device)
