"""An opened checkpoint: its sizes, its naming and the table of all its tensors, checked.

Reads headers only, and without torch: cheap enough for `ocr2 info` and for every worker.
Knows nothing about tensor data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ocr2cli.errors import ModelError
from ocr2cli.model.config import ModelConfig
from ocr2cli.text.tokenizer import Tokenizer
from ocr2cli.weights.gguf_config import gguf_config, gguf_tokenizer_json
from ocr2cli.weights.hub import ModelFiles, resolve_model
from ocr2cli.weights.names import detect_naming, model_params, why_ignored
from ocr2cli.weights.params import Naming, Param, Piece
from ocr2cli.weights.read_config import read_config
from ocr2cli.weights.read_gguf import read_header
from ocr2cli.weights.read_safetensors import read_table, shard_paths
from ocr2cli.weights.weight_file import StoredTensor, WeightFile


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Headers of a model. table: stored name -> (open file, place)."""

    files: ModelFiles
    config: ModelConfig
    naming: Naming
    table: Mapping[str, tuple[WeightFile, StoredTensor]]

    def pieces(self, param: Param) -> tuple[Piece, ...]:
        return param.pieces(self.naming, self.table)

    @property
    def open_files(self) -> list[WeightFile]:
        return list({id(file): file for file, _ in self.table.values()}.values())

    def num_bytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(stored.num_bytes for _, stored in self.table.values())

    def check_unchanged(self) -> None:
        for file in self.open_files:
            file.check_unchanged()

    def close(self) -> None:
        for file in self.open_files:
            file.close()


def open_checkpoint(model: ModelFiles | Path | str) -> Checkpoint:
    """Read and check a model's headers.

    Raises: ModelError; one that lists every missing, unexpected or mis-shaped tensor when the
    tensors are not the config's.
    """
    if isinstance(model, Path):
        model = str(model.absolute())
    files = resolve_model(model) if isinstance(model, str) else model
    checkpoint = _open_gguf(files) if files.is_gguf else _open_folder(files)
    try:
        _check_tensors(checkpoint)
    except ModelError:
        checkpoint.close()
        raise
    return checkpoint


def config_of(files: ModelFiles) -> ModelConfig:
    """The model's sizes alone, its headers checked. Raises: ModelError."""
    checkpoint = open_checkpoint(files)
    checkpoint.close()
    return checkpoint.config


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Raises: ModelError with one line for each tensor that is not as the config says."""
    params = model_params(checkpoint.config)
    problems = list(_problems(checkpoint, params))
    if problems:
        shown = "\n  ".join(problems)
        raise ModelError(
            f"{checkpoint.files.path} does not fit its config ({len(problems)} tensors):\n"
            f"  {shown}\nDownload the model again, or convert it with the matching config."
        )


def _problems(checkpoint: Checkpoint, params: Iterable[Param]) -> Iterator[str]:
    table, expected = checkpoint.table, set()
    for param in params:
        for piece in checkpoint.pieces(param):
            expected.add(piece.name)
            if piece.name not in table:
                if param.is_used:
                    yield f"missing: {piece.name} {list(piece.shape)}"
                continue
            file, stored = table[piece.name]
            if _squeezed(stored.shape) != _squeezed(piece.shape):
                yield (
                    f"mis-shaped: {piece.name} is {list(stored.shape)}, not {list(piece.shape)}, "
                    f"in {file.path.name}"
                )
    for name in table:
        if name not in expected and not why_ignored(name):
            yield f"unexpected: {name[:100]} in {table[name][0].path.name}"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of length one do not count: GGUF drops and adds them."""
    return tuple(size for size in shape if size != 1)


def _open_folder(files: ModelFiles) -> Checkpoint:
    config = read_config(files.path)
    table = _merge(shard_paths(files.path))
    naming = detect_naming(table)
    if naming is None or naming is Naming.GGUF:
        some = ", ".join(list(table)[:3])
        raise ModelError(f"{files.path} holds tensors of another model ({some[:200]} ...).")
    return Checkpoint(files, config, naming, table)


def _merge(paths: Iterable[Path]) -> dict[str, tuple[WeightFile, StoredTensor]]:
    """One table of several safetensors files."""
    table: dict[str, tuple[WeightFile, StoredTensor]] = {}
    for path in paths:
        file = WeightFile(path)
        for name, stored in read_table(file).items():
            if name in table:
                raise ModelError(
                    f"{name[:100]} stands both in {table[name][0].path} and in {path.name}. "
                    "Remove the file that does not belong to the model."
                )
            table[name] = (file, stored)
    return table


def _open_gguf(files: ModelFiles) -> Checkpoint:
    assert files.mmproj is not None
    text, vision = WeightFile(files.path), WeightFile(files.mmproj)
    text_header, vision_header = read_header(text), read_header(vision)
    config = gguf_config(text_header, vision_header, (str(files.path), str(files.mmproj)))
    table = {name: (text, stored) for name, stored in text_header.table.items()}
    for name, stored in vision_header.table.items():
        if name in table:
            raise ModelError(f"{name[:100]} stands in both {files.path} and {files.mmproj}.")
        table[name] = (vision, stored)
    return Checkpoint(files, config, Naming.GGUF, table)


def read_tokenizer(model: ModelFiles) -> Tokenizer:
    """The model's tokenizer: its tokenizer.json, or the GGUF file's vocabulary.

    Raises: ModelError.
    """
    if not model.is_gguf:
        return Tokenizer.from_file(model.path / "tokenizer.json")
    return Tokenizer.from_json(read_tokenizer_json(model), where=str(model.path))


def has_tokenizer(model: ModelFiles) -> bool:
    """False for weights that came without a vocabulary: they can be converted, not run."""
    if not model.is_gguf:
        return (model.path / "tokenizer.json").is_file()
    with WeightFile(model.path) as file:
        return "tokenizer.ggml.tokens" in read_header(file).metadata


def read_tokenizer_json(model: ModelFiles) -> str:
    """The text of tokenizer.json, made from the vocabulary for a GGUF file. Raises: ModelError."""
    if model.is_gguf:
        with WeightFile(model.path) as file:
            return gguf_tokenizer_json(read_header(file), str(model.path))
    path = model.path / "tokenizer.json"
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"cannot read the tokenizer {path}: {error}. Put the checkpoint's tokenizer.json there."
        ) from error
