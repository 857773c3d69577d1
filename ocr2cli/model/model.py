"""The whole model: a vision encoder and a decoder, each usable alone.

Knows nothing about files, weights or pages.
"""

from __future__ import annotations

from torch import nn

from ocr2cli.model.config import ModelConfig
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.vision import VisionEncoder


class OcrModel(nn.Module):
    """DeepSeek-OCR (v1 or v2 by config). Its state_dict's names are the project's own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config)
        self.decoder = Decoder(config.decoder)
