"""Sizes of the model, and nothing else: no tensor is made here, torch is not imported.

Knows nothing about config.json or GGUF keys: `weights/read_config.py` fills these.
Source of the defaults: the published config.json and weights of deepseek-ai/DeepSeek-OCR-2.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SamConfig:
    """SAM ViT image encoder and its neck; v1 and v2 differ in the last width only."""

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_hidden: int = 3072
    patch_size: int = 16
    image_size: int = 1024
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    neck_channels: int = 256
    downsample_channels: tuple[int, int] = (512, 896)
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class QueryEncoderConfig:
    """v2: Qwen2 layers used as an encoder over [image tokens ; learned queries]."""

    hidden_size: int = 896
    intermediate_size: int = 4864
    num_layers: int = 24
    num_heads: int = 14
    num_kv_heads: int = 2
    norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    tile_queries: int = 144
    global_queries: int = 256

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """v1: CLIP-L tower fed by SAM features."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    num_positions: int = 257
    norm_eps: float = 1e-5


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """DeepSeek-V2-style mixture-of-experts decoder with plain multi-head attention."""

    vocab_size: int = 129_280
    hidden_size: int = 1280
    num_layers: int = 12
    num_heads: int = 10
    num_dense_layers: int = 1
    dense_intermediate: int = 6848
    num_experts: int = 64
    experts_per_token: int = 6
    num_shared_experts: int = 2
    expert_intermediate: int = 896
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    max_positions: int = 8192

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def shared_intermediate(self) -> int:
        """The shared experts are stored as one merged MLP of this width."""
        return self.num_shared_experts * self.expert_intermediate


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The whole model. Exactly one of query_encoder (v2) and clip (v1) is set."""

    sam: SamConfig = field(default_factory=SamConfig)
    query_encoder: QueryEncoderConfig | None = field(default_factory=QueryEncoderConfig)
    clip: ClipConfig | None = None
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    bos_token_id: int = 0
    eos_token_id: int = 1
    image_token_id: int = 128_815

    @property
    def is_v1(self) -> bool:
        return self.clip is not None

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels."""
        return 640 if self.is_v1 else 768

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache a token takes in a two-byte dtype (bf16, f16)."""
        return 2 * self.decoder.num_layers * self.decoder.hidden_size * 2
