"""What is measured: pages of known size and a model, in memory, without a download.

Knows nothing about clocks or peers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ocr2cli.config import EngineConfig, TileConfig
from ocr2cli.document.tiles import make_views, v1_tile_config, view_layout
from ocr2cli.errors import UsageError
from ocr2cli.model.config import DecoderConfig, ModelConfig, QueryEncoderConfig, SamConfig
from ocr2cli.model.model import OcrModel
from ocr2cli.model.quantized import expect_int8
from ocr2cli.pages import PageImage, PageKey, Views
from ocr2cli.weights.load import load_model, matrix_names
from ocr2cli.weights.names import count_parameters

# The real architecture, and the same architecture at a size that a test can run.
RANDOM_MODELS = {
    "random-full": ModelConfig(),
    "random-tiny": ModelConfig(
        sam=SamConfig(
            hidden_size=32, num_layers=3, num_heads=2, mlp_hidden=64, neck_channels=16,
            downsample_channels=(24, 32), global_blocks=(2,),
        ),
        query_encoder=QueryEncoderConfig(
            hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, num_kv_heads=1
        ),
        decoder=DecoderConfig(
            vocab_size=512, hidden_size=64, num_layers=3, num_heads=2, dense_intermediate=96,
            num_experts=8, experts_per_token=2, expert_intermediate=32, max_positions=4096,
        ),
        image_token_id=3,
    ),
}  # fmt: skip
# A4 at 144 dpi: 2 x 3 tiles and the global view.
PAGE_SIZE = (1190, 1684)
PROMPT_TOKENS = 5  # begin token and "\nFree OCR."
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Work:
    """What ours and the peers are given.

    pages: those that are encoded. prompts: one [S, D] for each page that is decoded, random, so
    that every page writes other tokens and chooses other experts, as real pages do.
    """

    pages: Sequence[Views]
    prompts: Sequence[torch.Tensor]
    new_tokens: int

    @property
    def num_pages(self) -> int:
        return len(self.prompts)


@dataclass(slots=True)
class Subject:
    """What is measured: a model on a device, in a dtype. Peers are made to its `config`.

    has_int8: the decoder's matrices are int8, all the rest is `dtype`; so are the peers.
    matrices: what the weights of products are kept in, `dtype` or narrower; the peers' are `dtype`.
    is_compiled: the encoder went through torch.compile; the peers' did not.
    """

    name: str
    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    loaded: OcrModel | None
    has_int8: bool = False
    matrices: torch.dtype | None = None
    is_compiled: bool = False

    @property
    def model(self) -> OcrModel:
        if self.loaded is None:
            raise ValueError("this subject's model was given up")
        return self.loaded

    def give_up_model(self) -> None:
        """Free its memory: two full-size models do not fit in 16 GB."""
        self.loaded = None


def model_config(engine: EngineConfig) -> ModelConfig:
    """The sizes of the engine's model, without loading it. Raises: ModelError."""
    from ocr2cli.weights.checkpoint import config_of
    from ocr2cli.weights.hub import resolve_model

    if engine.model in RANDOM_MODELS:
        return RANDOM_MODELS[engine.model]
    return config_of(resolve_model(engine.model, engine.mmproj))


def check_request(config: ModelConfig, new_tokens: int, against: str | None) -> None:
    """Raises: UsageError for what this model cannot do, before it is loaded."""
    if against and config.is_v1:
        raise UsageError(f"--against {against} reads DeepSeek-OCR-2 only. Leave it out for v1.")
    most = max(0, config.decoder.max_positions - prompt_tokens(config))
    if new_tokens > most:
        raise UsageError(
            f"--new-tokens {new_tokens} does not fit: after a page's prompt this model has room "
            f"for {most}. Give at most that."
        )


def make_subject(engine: EngineConfig) -> Subject:
    """`random-full`, `random-tiny`, or any model that `--model` takes, vision and decoder.

    Raises: ModelError, UsageError, EngineError.
    """
    from ocr2cli.engines.loading import compile_vision, place, place_of_size

    int8 = engine.dtype == "int8"
    config = RANDOM_MODELS.get(engine.model)
    if config is None:
        from ocr2cli.weights.hub import resolve_model

        files = resolve_model(engine.model, engine.mmproj)
        device, dtype, matrices = where = place(files, engine)
        model = load_model(files, dtype=dtype, device=device, int8_decoder=int8, matrices=matrices)
        assert isinstance(model, OcrModel)
    else:
        device, dtype, matrices = where = place_of_size(engine, count_parameters(config))
        model = random_model(config, dtype, device, int8_decoder=int8, matrices=matrices)
    if where.packs:
        model.vision.prepare()
    if device.type == "cpu":
        model.decoder.prepare()
    is_compiled = engine.compile and compile_vision(model.vision)
    return Subject(
        engine.model, model.vision.config, device, dtype, model, int8, matrices, is_compiled
    )


def random_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    int8_decoder: bool = False,
    matrices: torch.dtype | None = None,
) -> OcrModel:
    """The architecture with random weights, made in memory at the speed of a copy. matrices: what
    the weights of products are kept in, if not `dtype`."""
    with torch.device("meta"):
        skeleton = OcrModel(config).to(dtype)
    kept_narrow = set(matrix_names(skeleton)) if matrices not in (None, dtype) else ()
    int8_matrices = expect_int8(skeleton.decoder) if int8_decoder else {}
    fresh: dict[str, torch.Tensor] = {}
    for name, value in skeleton.state_dict().items():
        weight = random_like(value, device)
        if name in kept_narrow:
            weight = weight.to(matrices)
        if matrix := int8_matrices.get(name.removeprefix("decoder.")):
            weight = matrix.take(name.rpartition(".")[2], weight)
        fresh[name] = weight
    skeleton.load_state_dict(fresh, assign=True)
    return skeleton.requires_grad_(False).eval()


def random_like(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Random numbers of a trained layer's size: matrices scaled by their width, vectors near one.

    A block of four million numbers is repeated: 3.4 billion draws would take a minute.
    """
    generator = torch.Generator().manual_seed(value.numel() % 2**31)
    count = min(value.numel(), _BLOCK)
    block = torch.randn(count, generator=generator)
    scale = value.shape[-1] ** -0.5 if value.dim() > 1 else 0.02
    block = (block * scale + (0.0 if value.dim() > 1 else 1.0)).to(value.dtype).to(device)
    repeats = -(-value.numel() // count)
    return block.repeat(repeats)[: value.numel()].reshape(value.shape)


def fill_randomly(module: nn.Module) -> None:
    """The same weights for a peer's module, in place; buffers stay as its constructor made them."""
    for parameter in module.parameters():
        parameter.data = random_like(parameter.data, parameter.device)


def make_work(subject: Subject, num_pages: int, new_tokens: int, *, encoded: int) -> Work:
    """num_pages prompts as long as a page's, of which `encoded` pages exist as pixels. Prompts are
    on the host, pinned for a card, as a run's are."""
    pages = make_pages(min(num_pages, encoded), tile_config(subject.config))
    generator = torch.Generator().manual_seed(0)
    shape = (prompt_tokens(subject.config), subject.config.decoder.hidden_size)
    prompts = [torch.randn(shape, generator=generator).to(subject.dtype) for _ in range(num_pages)]
    if subject.device.type == "cuda":
        prompts = [prompt.pin_memory() for prompt in prompts]
    return Work(pages, prompts, new_tokens)


def tile_config(config: ModelConfig) -> TileConfig:
    """The tile rule's numbers; v1's are those of its usual mode."""
    return v1_tile_config(EngineConfig().mode) if config.is_v1 else TileConfig()


def prompt_tokens(config: ModelConfig) -> int:
    """Tokens of a page's prompt: those of its views, the separator and the text."""
    layout = view_layout(*PAGE_SIZE, tile_config(config), is_v1=config.is_v1)
    return layout.visual_tokens + PROMPT_TOKENS


def make_pages(num_pages: int, tiles: TileConfig) -> list[Views]:
    """Views of A4 pages of noise on paper: their content changes no speed."""
    width, height = PAGE_SIZE
    rng = np.random.default_rng(0)
    pages = []
    for number in range(num_pages):
        rgb = rng.integers(180, 256, (height, width, 3), dtype=np.uint8)
        page = PageImage(PageKey("bench", number), rgb, 144)
        pages.append(make_views(page, tiles))
    return pages
