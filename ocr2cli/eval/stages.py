"""Our model one stage at a time, in this process: for `doctor`, for logits, for mutated models.

A batch run never comes here; it uses the same functions inside workers. Knows nothing about
scores. Letters: S visual tokens, T prompt tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ocr2cli.config import EXEMPT_TOKENS, DecodeConfig, EngineConfig, RasterConfig, TileConfig
from ocr2cli.document.tiles import make_views, v1_tile_config
from ocr2cli.engines.finish import PageFacts, failed, to_generation, to_result
from ocr2cli.errors import PageFault
from ocr2cli.eval.cases import Case
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.reference import Logits
from ocr2cli.pages import PageError, PageImage, PageKey, PageResult, Views
from ocr2cli.text.prompt import prompt_ids, prompt_text
from ocr2cli.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from ocr2cli.generate.track import Finished
    from ocr2cli.model.model import OcrModel

_SLOTS = 8


class ModelStages:
    """A loaded model and its tokenizer. model: on its device, in evaluation mode."""

    def __init__(self, model: OcrModel, tokenizer: Tokenizer, *, mode: str = "gundam") -> None:
        self.model = model
        self.config = model.config
        self.tokenizer = tokenizer
        self.tiles = v1_tile_config(mode) if self.config.is_v1 else TileConfig()

    def views(self, page: PageImage) -> Views:
        """The page cut into the model's views."""
        return make_views(page, self.tiles)

    def visual_tokens(self, views: Views) -> torch.Tensor:
        """[S, D] in decoder order, model dtype, on the model's device."""
        import torch

        from ocr2cli.engines.encoding import encode_pages

        with torch.inference_mode():
            (visual_SD,) = encode_pages(self.model.vision, [views])
        return visual_SD

    def prompt(self, case_prompt: str, prompt_own: str, num_visual: int) -> list[int]:
        """Ids of the whole prompt; the page's places hold the image id."""
        text = prompt_own or prompt_text(case_prompt)
        return prompt_ids(self.tokenizer, text, num_visual, self.config.image_token_id)

    def embeddings(self, ids: Sequence[int], visual_SD: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings [T, D] with the visual tokens in their places."""
        import torch

        from ocr2cli.engines.embedding import PromptEmbedder

        decoder = self.model.decoder
        with torch.inference_mode():
            prompt_TD = PromptEmbedder(decoder, self.config.image_token_id).embed(ids, visual_SD)
            return prompt_TD.to(decoder.embed.weight.device)

    def first_logits(self, case: Case, page: PageImage) -> Logits:
        """float32 [V] of the first new token, before any rule."""
        import torch

        visual = self.visual_tokens(self.views(page))
        x_TD = self.embeddings(self.prompt(case.prompt, case.prompt_text, len(visual)), visual)
        decoder = self.model.decoder
        with torch.inference_mode():
            last = decoder.hidden(x_TD[None])[0, -1]
            logits = decoder.logits(last).float().cpu().numpy()
        return logits.astype(np.float32)

    def generate(
        self, prompts: Sequence[tuple[Sequence[int], torch.Tensor]], decode: DecodeConfig
    ) -> list[Finished]:
        """Decode pages together. prompts: (ids, embeddings [T, D]); results in the same order."""
        import torch

        from ocr2cli.generate.generator import Generator

        context = self.config.decoder.max_positions
        generator = Generator(
            self.model.decoder,
            decode,
            eos_id=self.config.eos_token_id,
            exempt_ids=self.tokenizer.ids_of(EXEMPT_TOKENS),
            num_slots=min(_SLOTS, max(1, len(prompts))),
            kv_tokens=context * min(_SLOTS, max(1, len(prompts))),
        )
        done: dict[int, Finished] = {}
        with torch.inference_mode():
            for number, (ids, x_TD) in enumerate(prompts):
                generator.add(number, x_TD, ids)
            while generator.has_work:
                for finished in generator.step():
                    assert isinstance(finished.key, int)
                    done[finished.key] = finished
        return [done[number] for number in range(len(prompts))]

    def recognize(self, cases: Sequence[Case]) -> list[PageResult]:
        """Read pages without the pipeline: the same answer, one process, no retries."""
        return [self._read(case) for case in cases]

    def _read(self, case: Case) -> PageResult:
        key = PageKey(case.id, case.page)
        try:
            page = load_page(case, RasterConfig())
        except PageFault as fault:
            return failed(key, fault.code, fault.message)
        visual = self.visual_tokens(self.views(page))
        ids = self.prompt(case.prompt, case.prompt_text, len(visual))
        (finished,) = self.generate([(ids, self.embeddings(ids, visual))], case.decode)
        written = to_generation(key, finished, self.tokenizer, len(visual))
        if isinstance(written, PageError):
            return failed(key, written.code, written.message)
        return to_result([written], PageFacts())


def load_stages(engine: EngineConfig) -> ModelStages:
    """Load the engine's model into this process. Raises: ModelError, EngineError."""
    from ocr2cli.engines.loading import load_tokenizer, place
    from ocr2cli.model.model import OcrModel
    from ocr2cli.weights.hub import resolve_model
    from ocr2cli.weights.load import load_model

    files = resolve_model(engine.model, engine.mmproj)
    device, dtype, matrices = place(files, engine)
    model = load_model(
        files,
        dtype=dtype,
        device=device,
        int8_decoder=engine.dtype == "int8",
        matrices=matrices,
    )
    assert isinstance(model, OcrModel)
    return ModelStages(model, load_tokenizer(files), mode=engine.mode)
