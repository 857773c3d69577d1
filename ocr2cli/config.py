"""Every setting of a run, as frozen dataclasses with defaults that work.

Most fields have the names of their flags, with underscores. Filled by `cli/settings.py` for a
command and by `api.py` for a program; passed, never imported as a value. Knows nothing about
where a value came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Bump when a change alters the pixels, the prompt or the text for the same input: resume and the
# page cache look at it.
# 4: no page is cut where --kv-tokens ends; a page that stays a loop keeps its first reading; its
# second try's n-gram rule is never looser than the run's own.
# 5: a damaged page that shows nothing is not blank; a fax has square pixels.
# 6: int8 keeps two bytes of an activation.
# 7: light text on a transparent ground is shown on black; confidence is the text's alone.
# 8: what a text layer has of tags and images is shown as text.
# 9: `--text-layer auto` takes the characters of the glyphs, and only where it can vouch for them.
# 10: a looping page is not recovered by a try that writes nothing.
OUTPUT_VERSION = 10

# The exempt ids of the n-gram rule are looked up by these strings in the model's own vocabulary.
EXEMPT_TOKENS = ("<td>", "</td>")

# The words that a setting knows, in the order in which they are shown.
DTYPE_NAMES = ("auto", "bf16", "f16", "f32", "int8")
ROTATE_MODES = ("never", "auto")
TEXT_LAYER_USES = ("never", "draft", "trust", "auto")
DRAFT_MODES = ("auto", "text-layer", "ngram", "off")
ENGINES = ("native", "openai")
REFERENCES = ("hf", "hf-processor", "llama.cpp", "recorded", "none")

# The least and the most that a number may be; None: no limit. Any other: 0 and no limit.
BOUNDS: dict[str, tuple[Any, Any]] = {
    "dpi": (18, 1200),
    "max_pixels": (1, None),
    "blank_ink": (0, 1),
    "server_concurrency": (1, None),
    "page_timeout": (0.001, None),
    "retries": (0, 10),
    "min_confidence": (0, 1),
}


@dataclass(frozen=True, slots=True)
class RasterConfig:
    """Documents to pixels. dpi: of PDFs. max_pixels: a larger page is rendered smaller."""

    dpi: int = 144
    max_pixels: int = 40_000_000
    password: str = ""
    rotate: str = "never"  # ROTATE_MODES
    text_layer: str = "never"  # TEXT_LAYER_USES
    blank_ink: float = 2e-5  # share of inked pixels below which a page is blank; 0 turns it off


@dataclass(frozen=True, slots=True)
class TileConfig:
    """The tile rule's numbers. v2: 768, 2 to 6 tiles; v1 gundam: 640, 2 to 9."""

    tile_size: int = 768
    global_size: int = 1024
    min_tiles: int = 2
    max_tiles: int = 6
    # v1's modes without tiles: the only view has side `global_size`; tiny and small stretch the
    # page to it (True), base and large pad it (False).
    is_tiled: bool = True
    stretch_global: bool = False


V1_MODES = {
    "tiny": TileConfig(640, 512, 2, 9, is_tiled=False, stretch_global=True),
    "small": TileConfig(640, 640, 2, 9, is_tiled=False, stretch_global=True),
    "base": TileConfig(640, 1024, 2, 9, is_tiled=False),
    "large": TileConfig(640, 1280, 2, 9, is_tiled=False),
    "gundam": TileConfig(640, 1024, 2, 9),
}


@dataclass(frozen=True, slots=True)
class DryConfig:
    """llama.cpp's DRY sampler (model-spec 9.3)."""

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2
    last_n: int = 64  # below 0: all

    @property
    def fault(self) -> str:
        """What a number must be so that this forbids anything; "" when all are so."""
        rules = {
            "MULTIPLIER is more than 0": 0 < self.multiplier < math.inf,
            "BASE is 1 or more": 1 <= self.base < math.inf,
            "LENGTH is 0 or more": self.allowed_length >= 0,
            "LAST_N is not 0": self.last_n != 0,
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        return f"{broken[0]}. For no rule at all use --no-repeat-ngram 0" if broken else ""


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Tokens out. max_new_tokens 0: as many as the context holds after the prompt."""

    max_new_tokens: int = 0
    no_repeat_ngram: int = 20
    ngram_window: int = 90
    ngram_over_prompt: bool = False  # True with window 0: the plain transformers rule
    dry: DryConfig | None = None
    detect_loops: bool = True
    draft: str = "off"  # DRAFT_MODES


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Which model, where, how wide."""

    engine: str = "native"  # ENGINES
    model: str = "nano"
    mmproj: str = ""
    mode: str = "gundam"  # V1_MODES
    prompt: str = "markdown"
    prompt_text: str = ""
    device: str = "auto"
    dtype: str = "auto"
    encoders: int = 0
    decoders: int = 0
    rasterizers: int = 0
    compile: bool = False  # a GPU's encoder through torch.compile
    batch_size: int = 0  # sequences decoded together; 0: by device and memory
    kv_tokens: int = 0  # token budget of the KV cache; 0: by device and memory
    server: str = ""
    api_key: str = ""
    server_concurrency: int = 8


@dataclass(frozen=True, slots=True)
class RunConfig:
    """One `ocr2 run`."""

    inputs: tuple[str, ...] = ()
    out: Path = Path("out")
    out_url: str = ""  # object store that finished documents go to; `out` is then its local state
    pages: str = ""
    formats: tuple[str, ...] = ("md", "jsonl")
    resume: bool = True
    retry_failed: bool = False
    fail_fast: bool = False
    save_tokens: bool = False
    page_timeout: float = 600.0
    retries: int = 1
    recover_loops: bool = True
    recycle_after: int = 500
    worker_memory: int = 0  # bytes; 0: no limit
    drain: float = 20.0  # seconds pages in flight may take after the first signal to stop
    cache: str = ""
    cache_size: int = 2_000_000_000
    min_confidence: float = 0.0
    metrics_file: str = ""
    runner: str = "local"  # runners.RUNNERS
    ray_address: str = ""
    raster: RasterConfig = field(default_factory=RasterConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
