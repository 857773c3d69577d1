"""How many pages a decoder reads together and how many tokens its KV cache may hold, by the memory
of the card or of the host.

Imports no torch: the parent plans, the workers load. Knows nothing about stages.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ocr2cli.config import EngineConfig
from ocr2cli.engines.host import (
    addresses_left,
    cuda_memory_free,
    expects_cuda,
    has_bf16_products,
    host_memory_available,
    promises_left,
)
from ocr2cli.model.config import ModelConfig
from ocr2cli.weights.names import count_parameters, decoder_params, vision_params

# Below this many parameters a step is bound by overhead, and fp32 beats bf16 on a CPU: nano
# decodes a token in about half the time.
SMALL_MODEL = 100_000_000

# On a CPU, and where a card does not tell its memory.
_MAX_BATCH = 32
_MAX_CUDA_BATCH = 128
# Of a card's free memory what may be planned with, and what the encoder's batches, graphs and two
# processes' contexts take of that.
_CUDA_SHARE = 0.92
_CUDA_WORKING_BYTES = 6_000_000_000
# Of the host's memory that weights and work leave, what the KV cache may take; and what work takes
# in an encoder or a decoder beside its weights.
_KV_SHARE = 0.6
_WORKING_BYTES = 1_500_000_000
_TYPICAL_PAGE_TOKENS = 2_400

_WIDTHS = {"bf16": 2, "f16": 2, "f32": 4}


@dataclass(frozen=True, slots=True)
class WorkerBytes:
    """What each worker of a model holds. encoder, decoder: weights. kv_token: of one token in the
    KV cache."""

    encoder: int
    decoder: int
    kv_token: int


def worker_bytes(
    config: ModelConfig, *, arithmetic: int, matrices: int, is_int8: bool
) -> WorkerBytes:
    """arithmetic, matrices: bytes of a number in the arithmetic, and in matrices as they are kept;
    is_int8: the decoder's are in one."""
    embedding, *layers = decoder_params(config.decoder)
    encoder = sum(param.numel for param in vision_params(config)) * matrices
    decoder = sum(param.numel for param in layers) * (1 if is_int8 else matrices)
    return WorkerBytes(
        encoder=encoder,
        decoder=decoder + embedding.numel * arithmetic,
        kv_token=config.kv_bytes_per_token // 2 * arithmetic,
    )


def expected_bytes(engine: EngineConfig, config: ModelConfig) -> WorkerBytes:
    """The same where torch has not been asked: on a host, never less than it will be."""
    is_large = count_parameters(config) >= SMALL_MODEL
    arithmetic = _WIDTHS.get(engine.dtype, 2 if is_large and has_bf16_products() else 4)
    matrices = _WIDTHS.get(engine.dtype, 2 if is_large else 4)
    return worker_bytes(
        config, arithmetic=arithmetic, matrices=matrices, is_int8=engine.dtype == "int8"
    )


def memory_remedy(device_type: str) -> str:
    """What a person may do where a decoder on such a device lacks memory, as the rest of a
    sentence. Asked in the worker, whose own limit is that of the option and the shell's, whichever
    is less."""
    if device_type != "cpu":
        return "free some of the card's memory or use --device cpu"
    limit = addresses_left()
    if limit is None:
        return "free some memory"
    return f"raise the limit of {limit / 1e9:g} GB (--worker-memory, or the shell's ulimit -v)"


def plan_batch(
    engine: EngineConfig,
    config: ModelConfig,
    *,
    encoders: int,
    decoders: int,
    memory_limit: int = 0,
) -> int:
    """Pages that a decoder reads together: on a CUDA card as many as its free memory has slots for,
    each as long as the longest page. memory_limit: of a worker on a CPU, 0 for none."""
    if not expects_cuda(engine.device, engine.dtype):
        sizes = expected_bytes(engine, config)
        rooms: list[float] = []
        if (addresses := addresses_left(memory_limit)) is not None:
            rooms.append(addresses - sizes.decoder - _WORKING_BYTES)
        if (promises := promises_left()) is not None:
            rooms.append((promises - _beside_cache(sizes, encoders, decoders)) / decoders)
        room = min(rooms, default=math.inf)
        return _num_slots(room, config, sizes.kv_token, _MAX_BATCH)
    free = cuda_memory_free(engine.device)
    if free is None:
        return _MAX_BATCH
    # Whatever a file holds, on a card a weight takes two bytes, or four.
    width = 4 if engine.dtype == "f32" else 2
    left = (_CUDA_SHARE * free - _CUDA_WORKING_BYTES) / decoders - count_parameters(config) * width
    return _num_slots(left, config, config.kv_bytes_per_token // 2 * width, _MAX_CUDA_BATCH)


def _num_slots(left: float, config: ModelConfig, token_bytes: int, most: int) -> int:
    """Pages whose slots fit in `left` bytes; the cache has one slot more than there are pages."""
    slots = min(left / (token_bytes * config.decoder.max_positions), most + 1)
    return max(1, int(slots) - 1)


def _beside_cache(sizes: WorkerBytes, encoders: int, decoders: int) -> int:
    """Bytes of all encoders and decoders without their caches."""
    weights = encoders * sizes.encoder + decoders * sizes.decoder
    return weights + (encoders + decoders) * _WORKING_BYTES


def card_kv_tokens(config: ModelConfig, batch: int) -> int:
    """The budget on a card, where every slot's memory is taken from the start."""
    return batch * config.decoder.max_positions


def plan_kv_tokens(
    engine: EngineConfig, config: ModelConfig, batch: int, *, encoders: int, decoders: int
) -> int:
    """Tokens one decoder's KV cache may hold: on a host what the batch has use for, at most a share
    of what memory the workers leave, and never less than one full page. So too with `auto`: torch
    may be a CPU build beside an NVIDIA driver."""
    if engine.device.startswith("cuda"):
        return card_kv_tokens(config, batch)
    longest = config.decoder.max_positions
    useful = batch * min(longest, _TYPICAL_PAGE_TOKENS)
    sizes = expected_bytes(engine, config)
    free = max(0, host_memory_available() - _beside_cache(sizes, encoders, decoders))
    by_memory = int(_KV_SHARE * free / decoders / sizes.kv_token)
    return max(longest, min(by_memory, useful))
