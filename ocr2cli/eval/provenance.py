"""What a score belongs to: weights, device, dtype, versions. Without it a number proves nothing.

Knows model files and versions; knows nothing about scores.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ocr2cli.config import EngineConfig
from ocr2cli.errors import ModelError
from ocr2cli.weights.hub import ModelFiles, resolve_model

# The packages that can change pixels, tokens or scores.
_PACKAGES = (
    "torch", "numpy", "pillow", "pymupdf", "tokenizers", "safetensors", "jiwer", "rapidfuzz",
    "sacrebleu", "apted",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """kind: "v1", "v2" or "unlimited-ocr"; digest: of the weight files, "" for a server.

    computes_in: the dtype of what is not quantised; the model's own unless `dtype` is int8.
    """

    name: str
    kind: str
    digest: str = ""
    device: str = ""
    dtype: str = ""
    num_parameters: int = 0
    is_published_size: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    computes_in: str = ""


def model_facts(engine: EngineConfig) -> ModelFacts:
    """The facts of the model an engine would run. Raises: ModelError."""
    if engine.engine != "native":
        kind = _kind_by_name(engine.model) or (
            "v1" if "ocr-2" not in engine.model.lower() else "v2"
        )
        return ModelFacts(engine.model, kind, device=engine.server, versions=versions())
    from ocr2cli.engines.device import pick_device, pick_dtype
    from ocr2cli.model.config import ModelConfig
    from ocr2cli.weights.checkpoint import config_of
    from ocr2cli.weights.names import count_parameters

    files = resolve_model(engine.model, engine.mmproj)
    config = config_of(files)
    device = pick_device(engine.device, engine.dtype)
    num_parameters = count_parameters(config)
    computes_in = str(pick_dtype(engine.dtype, device, num_parameters)).removeprefix("torch.")
    published = (ModelConfig().decoder.hidden_size, ModelConfig().decoder.vocab_size)
    return ModelFacts(
        name=engine.model,
        kind=_kind_by_name(engine.model) or ("v1" if config.is_v1 else "v2"),
        digest=whole_digest(files),
        device=str(device),
        dtype="int8" if engine.dtype == "int8" else computes_in,
        computes_in=computes_in,
        num_parameters=num_parameters,
        is_published_size=(config.decoder.hidden_size, config.decoder.vocab_size) == published,
        versions=versions(),
    )


def _kind_by_name(name: str) -> str:
    # its config cannot be told from v1's: only the name says it
    return "unlimited-ocr" if "unlimited" in Path(name).name.lower() else ""


def whole_digest(files: ModelFiles) -> str:
    """sha256 over every byte of the weight files, in name order. Raises: ModelError.

    Not `weights.digest`, which samples large files: one changed layer of 6.8 GB must not find the
    reference outputs of the whole model in the cache.
    """
    if files.is_gguf:
        assert files.mmproj is not None
        paths = [files.path, files.mmproj]
    else:
        paths = sorted(files.path.glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in paths:
        try:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path} cannot be read ({error.strerror}).") from error
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python, the tool and the packages that can change a score."""
    from ocr2cli import __version__

    found = {"ocr2": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
