"""Model files -> modules ready to run, for the native workers, bench and eval.

Knows nothing about stages or pages.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import torch

from ocr2cli.config import EngineConfig
from ocr2cli.engines.device import pick_device, pick_dtype, pick_matrices
from ocr2cli.model.processor import has_bf16_products, has_faulty_cudnn_attention
from ocr2cli.weights import load
from ocr2cli.weights.checkpoint import config_of
from ocr2cli.weights.names import count_parameters

if TYPE_CHECKING:
    from ocr2cli.model.decoder import Decoder
    from ocr2cli.model.vision import VisionEncoder
    from ocr2cli.text.tokenizer import Tokenizer
    from ocr2cli.weights.hub import ModelFiles


logger = logging.getLogger("ocr2")


class Place(NamedTuple):
    """Where a model runs, in which arithmetic, and in which dtype its matrices are kept."""

    device: torch.device
    dtype: torch.dtype
    matrices: torch.dtype

    @property
    def packs(self) -> bool:
        """Weights can be kept in oneDNN's order: products take them as they are."""
        return self.device.type == "cpu" and self.matrices == self.dtype

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.dtype, self.matrices)]
        kept = "" if names[0] == names[1] else f", matrices kept in {names[1]}"
        return f"{self.device}, {names[0]}{kept}"


def load_vision(files: ModelFiles, engine: EngineConfig) -> VisionEncoder:
    """The vision encoder alone, ready for inference on its device."""
    device, dtype, matrices = where = place(files, engine)
    logger.info("encoder: %s", where)
    vision = load.load_vision(files, dtype=dtype, device=device, matrices=matrices)
    if where.packs:
        vision.prepare()
    if engine.compile:
        compile_vision(vision)
    return vision


def compile_vision(vision: VisionEncoder) -> bool:
    """`--compile`; False, with a warning, on a CPU, whose products are oneDNN's own."""
    is_on_cpu = vision.view_separator.device.type == "cpu"
    if is_on_cpu:
        logger.warning("--compile is for a GPU's encoder; on a CPU nothing is compiled")
    else:
        vision.compile_blocks()
    return not is_on_cpu


def load_decoder(files: ModelFiles, engine: EngineConfig) -> Decoder:
    """The decoder alone, ready for inference on its device."""
    device, dtype, matrices = where = place(files, engine)
    logger.info("decoder: %s%s", where, ", its weights in int8" if engine.dtype == "int8" else "")
    if device.type == "cpu" and dtype == torch.bfloat16 and not has_bf16_products():
        logger.warning(
            "--dtype bf16: this processor has no bf16 products and takes plain loops, some thirty "
            "times slower; --dtype auto computes in float32 from the same bf16 weights"
        )
    decoder = load.load_decoder(
        files, dtype=dtype, device=device, int8=engine.dtype == "int8", matrices=matrices
    )
    if device.type == "cpu":
        decoder.prepare()
    return decoder


def place(files: ModelFiles, engine: EngineConfig) -> Place:
    """Where and in which arithmetic the model runs, with `auto` resolved."""
    return place_of_size(engine, count_parameters(config_of(files)))


def place_of_size(engine: EngineConfig, num_parameters: int) -> Place:
    """The same for a model of so many parameters. Has cuDNN compute as the model wants it."""
    device = pick_device(engine.device, engine.dtype)
    dtype = pick_dtype(engine.dtype, device, num_parameters)
    if dtype == torch.float32:
        # cuDNN would round a convolution's operands to 10 bits; products are exact as they are.
        torch.backends.cudnn.allow_tf32 = False
    if has_faulty_cudnn_attention(device):
        torch.backends.cuda.enable_cudnn_sdp(False)
    return Place(device, dtype, pick_matrices(engine.dtype, device, num_parameters))


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """tokenizer.json beside the weights, or the vocabulary inside the GGUF file."""
    from ocr2cli.weights.checkpoint import read_tokenizer

    return read_tokenizer(files)
