"""The --ref of the options to a Reference, and our first logits where it can be compared to them.

Knows model files; knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Callable

from ocr2cli.config import EXEMPT_TOKENS
from ocr2cli.errors import UsageError
from ocr2cli.eval.cases import Case
from ocr2cli.eval.provenance import ModelFacts
from ocr2cli.eval.reference import Logits, Reference
from ocr2cli.eval.run import EvalOptions, FirstLogits
from ocr2cli.pages import PageImage
from ocr2cli.weights.hub import resolve_model


def make_reference(
    options: EvalOptions, model: ModelFacts, first_logits: FirstLogits | None
) -> tuple[Reference, FirstLogits | None]:
    """Raises: UsageError when the reference is not installed or cannot run this model."""
    if options.engine.engine != "native":
        raise UsageError(
            f"--ref {options.ref} needs the weights on this machine; use --ref recorded."
        )
    files = resolve_model(options.engine.model, options.engine.mmproj)
    if options.ref == "llama.cpp":
        from ocr2cli.eval.references.llama_cpp import llama_cpp_reference

        text, mmproj = files.path, files.mmproj or files.path
        reference = llama_cpp_reference(
            text, mmproj, program=options.ref_bin, weights_digest=model.digest
        )
        return reference, None
    if files.is_gguf:
        raise UsageError(
            "--ref hf reads a folder of safetensors. Make one with "
            "`ocr2 convert MODEL.gguf FOLDER`, or use --ref llama.cpp."
        )
    from ocr2cli.eval.references.hf import hf_reference
    from ocr2cli.weights.read_config import read_config

    reference = hf_reference(
        files.path,
        read_config(files.path),
        weights_digest=model.digest,
        device=model.device,
        # int8 is compared with the whole weights in the arithmetic that all the rest runs in
        dtype=model.computes_in or model.dtype,
        exempt_tokens=EXEMPT_TOKENS,
        has_own_processor=options.ref == "hf-processor",
    )
    return reference, first_logits or _our_logits(options)


def _our_logits(options: EvalOptions) -> Callable[[Case, PageImage], Logits]:
    """Loads our model at the first page asked for: a cached reference may need none."""
    from functools import cache

    from ocr2cli.eval.stages import ModelStages, load_stages

    @cache
    def stages() -> ModelStages:
        return load_stages(options.engine)

    return lambda case, page: stages().first_logits(case, page)
