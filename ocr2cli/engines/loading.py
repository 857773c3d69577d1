"""Model files -> modules ready to run, for the native workers and for bench and eval.

Knows nothing about stages or pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocr2cli.engines.device import pick_device, pick_dtype
from ocr2cli.weights.load import load_model, read_model_config
from ocr2cli.weights.names import count_parameters

if TYPE_CHECKING:
    from ocr2cli.engines.native import NativeSpec
    from ocr2cli.model.config import ModelConfig
    from ocr2cli.model.decoder import Decoder
    from ocr2cli.model.vision import VisionEncoder
    from ocr2cli.text.tokenizer import Tokenizer
    from ocr2cli.weights.hub import ModelFiles


def load_vision(spec: NativeSpec) -> VisionEncoder:
    """The vision encoder alone, in evaluation mode, on its device."""
    config = read_model_config(spec.files)
    device = pick_device(spec.engine.device)
    dtype = pick_dtype(spec.engine.dtype, device, count_parameters(config))
    model = load_model(spec.files, dtype=dtype, device=device, parts={"vision"})
    return model.vision.eval()


def load_decoder(spec: NativeSpec) -> tuple[Decoder, ModelConfig]:
    """The decoder alone, in evaluation mode, on its device."""
    config = read_model_config(spec.files)
    device = pick_device(spec.engine.device)
    dtype = pick_dtype(spec.engine.dtype, device, count_parameters(config))
    model = load_model(spec.files, dtype=dtype, device=device, parts={"decoder"})
    return model.decoder.eval(), config


def load_tokenizer(files: ModelFiles) -> Tokenizer:
    """tokenizer.json beside the weights, or the vocabulary inside the GGUF file."""
    from ocr2cli.text.tokenizer import Tokenizer

    if files.is_gguf:
        from ocr2cli.weights.read_gguf import tokenizer_json

        return Tokenizer.from_json(tokenizer_json(files.path), where=str(files.path))
    return Tokenizer.from_file(files.path / "tokenizer.json")
