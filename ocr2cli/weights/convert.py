"""One checkpoint form to another, tensor by tensor: original, transformers' names, a GGUF pair.

Each of our parameters is read once, cut into the pieces the other form wants, and written into
its place, so the memory needed is that of the largest parameter, not of the model.
Knows which dtype each tensor gets; knows nothing about containers' bytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ocr2cli.errors import ModelError, OutputError, UsageError
from ocr2cli.model.config import DecoderConfig, ModelConfig, QueryEncoderConfig
from ocr2cli.text.prompt import PROMPTS
from ocr2cli.text.tokenizer import Tokenizer
from ocr2cli.weights.checkpoint import (
    Checkpoint,
    has_tokenizer,
    open_checkpoint,
    read_tokenizer_json,
)
from ocr2cli.weights.convert_report import ConvertReport, ErrorRow
from ocr2cli.weights.digest import weights_digest
from ocr2cli.weights.gguf_config import gguf_tokenizer_json
from ocr2cli.weights.hub import ModelFiles, is_gguf_name, resolve_model
from ocr2cli.weights.load import read_param
from ocr2cli.weights.names import model_params
from ocr2cli.weights.params import Naming, Param, Piece
from ocr2cli.weights.quants import BLOCKS, dequantise, quantise_q8_0
from ocr2cli.weights.read_gguf import GgufHeader, Value, read_header
from ocr2cli.weights.read_safetensors import INDEX_NAME, SINGLE_NAME, read_metadata
from ocr2cli.weights.tensors import TORCH_DTYPES
from ocr2cli.weights.weight_file import WeightFile
from ocr2cli.weights.write_config import (
    native_config,
    original_config,
    text_metadata,
    vision_metadata,
    vocabulary_metadata,
)
from ocr2cli.weights.write_file import Entry, WeightWriter, gguf_writer, safetensors_writer

QUANTS = {"bf16": "BF16", "f16": "F16", "f32": "F32", "q8_0": "Q8_0"}
# Small files that go along; never code, never templates.
COMPANIONS = (
    "tokenizer_config.json", "special_tokens_map.json", "processor_config.json",
    "preprocessor_config.json", "generation_config.json",
)
# In the result's metadata: the digest of what it was made of.
SOURCE_KEY = "ocr2.source"
CHUNK_ITEMS = 8 << 20
# SAM's blocks that llama.cpp takes for global ones, whatever the sizes.
LLAMA_CPP_GLOBAL_BLOCKS = frozenset((2, 5, 8, 11))
# Texts that tell splitting rules apart.
_PROBES = (
    "In 1984, 12345.67 people's  co-op\n\n x",
    "<td>\u00a35</td>\t\u4e2d\u6587\u304b\u306a",
    "#a $B",
)

Progress = Callable[[int, int], None]


def convert(
    src: ModelFiles | Path | str,
    dst: Path,
    *,
    quant: str = "bf16",
    naming: str = "original",
    mmproj: str = "",
    progress: Progress | None = None,
) -> ConvertReport:
    """Write the model `src` as `dst`: a .gguf (with mmproj-NAME beside it), else a folder.

    quant: bf16, f16, f32, or q8_0 (GGUF only). naming: of a folder's tensors, original or
    transformers. progress: called with (bytes done, bytes in all).
    Raises: UsageError, ModelError, OutputError. No half-written weights stay behind.
    """
    dst = Path(os.path.abspath(dst))  # "." has no name to put anything beside
    is_gguf = is_gguf_name(dst)
    if quant not in QUANTS:
        raise UsageError(f"--quant {quant} is not known. Use one of {', '.join(QUANTS)}.")
    if quant == "q8_0" and not is_gguf:
        raise UsageError("q8_0 is a GGUF format. Give a DST that ends in .gguf.")
    files = src if isinstance(src, ModelFiles) else resolve_model(str(src), mmproj)
    checkpoint = open_checkpoint(files)
    try:
        _refuse_overwrite(checkpoint, dst)
        if is_gguf:
            return _Conversion(checkpoint, QUANTS[quant], Naming.GGUF, progress).to_gguf(dst, quant)
        return _Conversion(checkpoint, QUANTS[quant], Naming(naming), progress).to_folder(dst)
    except OSError as error:  # reading has turned its own into a ModelError
        raise OutputError(
            f"{error.filename or dst} cannot be written: {error.strerror or error}. Make room or "
            "choose another DST."
        ) from error
    finally:
        checkpoint.close()


@dataclass(slots=True)
class _Conversion:
    checkpoint: Checkpoint
    dtype: str
    naming: Naming
    progress: Progress | None
    rows: dict[tuple[str, str], ErrorRow] = field(default_factory=dict)
    num_done: int = 0
    num_total: int = 0

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    @property
    def params(self) -> list[Param]:
        """Unused tensors go along when the source has them."""
        return [
            param for param in model_params(self.config)
            if param.is_used or self.checkpoint.pieces(param)[0].name in self.checkpoint.table
        ]

    def to_folder(self, dst: Path) -> ConvertReport:
        config = self._config_json()
        tokenizer, warnings = self._tokenizer()
        companions = self._companions()
        dst.mkdir(parents=True, exist_ok=True)
        path = dst / SINGLE_NAME
        entries = [self._entry(param, piece) for param, piece in self._pieces(self.params)]
        writer = safetensors_writer(path, entries, self._origin())
        self._write([(writer, self.params)])
        (dst / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="ascii")
        if tokenizer:
            (dst / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        for name, data in companions.items():
            (dst / name).write_bytes(data)
        return self._report((path,), warnings)

    def to_gguf(self, dst: Path, quant: str) -> ConvertReport:
        tokenizer, warnings = self._tokenizer()
        name = self.checkpoint.files.path.stem
        text = text_metadata(self.config, name, quant)
        if tokenizer:
            where = str(self.checkpoint.files.path)
            vocabulary = vocabulary_metadata(tokenizer, self.config, where)
            warnings += _splitting_differs(tokenizer, vocabulary)
            text |= vocabulary
        mmproj = dst.with_name(f"mmproj-{dst.name}")
        dst.parent.mkdir(parents=True, exist_ok=True)
        halves = [
            self._gguf_half(mmproj, "vision", vision_metadata(self.config, name, quant)),
            self._gguf_half(dst, "decoder", text),
        ]
        self._write(halves)
        return self._report((dst, mmproj), warnings + _llama_cpp_limits(self.config))

    def _gguf_half(
        self, path: Path, part: str, metadata: Mapping[str, Value]
    ) -> tuple[WeightWriter, list[Param]]:
        params = [param for param in self.params if param.part == part]
        entries = [self._entry(param, piece) for param, piece in self._pieces(params)]
        return gguf_writer(path, {**metadata, **self._origin()}, entries), params

    def _origin(self) -> dict[str, str]:
        return {SOURCE_KEY: weights_digest(self.checkpoint.files)}

    def _pieces(self, params: Iterable[Param]) -> Iterator[tuple[Param, Piece]]:
        for param in params:
            for piece in param.pieces(self.naming):
                yield param, piece

    def _entry(self, param: Param, piece: Piece) -> Entry:
        dtype = self.dtype
        if self.naming is Naming.GGUF:
            if param.is_f32_in_gguf:
                dtype = "F32"
            elif dtype in BLOCKS and piece.shape[-1] % BLOCKS[dtype][1]:
                dtype = "F16"  # as llama.cpp does with rows that are not whole blocks
        return Entry(piece.name, piece.shape, dtype)

    def _write(self, halves: list[tuple[WeightWriter, list[Param]]]) -> None:
        """Neither half gets its name before both are written; a half that has it keeps it if the
        other cannot be renamed."""
        self.num_total = sum(
            self._entry(param, piece).num_bytes
            for _, params in halves for param, piece in self._pieces(params)
        )
        with ExitStack() as stack:
            for writer, params in halves:
                stack.enter_context(writer)
                for param in params:
                    self._write_param(writer, param)
            self.checkpoint.check_unchanged()

    def _write_param(self, writer: WeightWriter, param: Param) -> None:
        source = read_param(
            self.checkpoint, param, dtype=self._source_dtype(param), check_finite=param.is_used
        )
        for piece in param.pieces(self.naming):
            entry = self._entry(param, piece)
            row = self._row(param, entry.dtype)
            row.num_tensors += 1
            box = source[piece.index] if piece.index else source
            offset = writer.begins[piece.name]
            for values in torch.split(box.reshape(-1), CHUNK_ITEMS):
                data = _encode(values, entry, row)
                writer.write_at(offset, data)
                offset += len(data)
                self.num_done += len(data)
                if self.progress is not None:
                    self.progress(self.num_done, self.num_total)

    def _source_dtype(self, param: Param) -> torch.dtype:
        """The dtype all pieces share, so that nothing is rounded on the way in."""
        stored = {
            self.checkpoint.table[piece.name][1].dtype for piece in self.checkpoint.pieces(param)
        }
        if len(stored) == 1:
            return TORCH_DTYPES.get(stored.pop(), torch.float32)
        return torch.float32

    def _row(self, param: Param, dtype: str) -> ErrorRow:
        kind = _kind(param)
        return self.rows.setdefault((kind, dtype), ErrorRow(kind, dtype))

    def _config_json(self) -> dict[str, object]:
        make = native_config if self.naming is Naming.TRANSFORMERS else original_config
        return make(self.config)

    def _tokenizer(self) -> tuple[str, tuple[str, ...]]:
        """The tokenizer's JSON, or "" with a warning: weights alone can still be converted."""
        source = self.checkpoint.files
        if not has_tokenizer(source):
            return "", (f"{source.path} has no vocabulary, so the result has none either",)
        return read_tokenizer_json(source), ()

    def _companions(self) -> dict[str, bytes]:
        """The small files that go along, by name, read before anything is written."""
        source = self.checkpoint.files
        if source.is_gguf:
            return {}
        found = {}
        for path in (source.path / name for name in COMPANIONS):
            if path.is_file():
                with WeightFile(path) as file:
                    found[path.name] = file.read(0, file.size)
        return found

    def _report(self, paths: tuple[Path, ...], warnings: tuple[str, ...]) -> ConvertReport:
        rows = tuple(self.rows.values())
        return ConvertReport(paths, sum(p.stat().st_size for p in paths), rows, warnings)


def _encode(values: torch.Tensor, entry: Entry, row: ErrorRow) -> memoryview:
    """One-dimensional values as bytes of the entry's dtype; the rounding is added to `row`.

    Raises: ModelError for a value that is larger than the dtype holds.
    """
    row.numel += values.numel()
    target = TORCH_DTYPES.get(entry.dtype)
    if target is not None:
        out = values.to(target)
        if _is_lossless(values.dtype, target):
            return _view(out)
        back, data = out.float(), _view(out)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # refused below, in words
            blocks = quantise_q8_0(values.float().numpy())
            data = blocks.data.cast("B")
            back = torch.from_numpy(dequantise(entry.dtype, data))
    difference = (back - values.float()).abs_()
    worst = float(difference.max())
    if not math.isfinite(worst):
        _refuse_overflow(values, back, entry)
    row.max_abs = max(row.max_abs, worst)
    row.squared_error += float(difference.square_().sum(dtype=torch.float64))
    row.squared_value += float(values.float().square().sum(dtype=torch.float64))
    return data


def _refuse_overflow(values: torch.Tensor, back: torch.Tensor, entry: Entry) -> None:
    lost = values[values.isfinite() & ~back.isfinite()]
    if len(lost):
        other = "f32" if entry.dtype == "BF16" else "bf16"
        raise ModelError(
            f"{entry.name} holds {float(lost[0]):g}, which is too large for "
            f"{entry.dtype.lower()}. Use --quant {other}."
        )


def _is_lossless(source: torch.dtype, target: torch.dtype) -> bool:
    return source == target or target == torch.float32


def _view(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


def _kind(param: Param) -> str:
    """The row of the error table a parameter counts in."""
    name = param.name
    if "experts_" in name:
        return "decoder experts"
    if name in ("decoder.embed.weight", "decoder.lm_head.weight"):
        return "decoder vocabulary"
    if param.part == "decoder":
        return "decoder attention" if ".attn." in name else "decoder other"
    section = name.split(".")[1]
    return f"vision {section}" if section in ("sam", "query_encoder", "clip") else "vision other"


def _splitting_differs(tokenizer: str, vocabulary: Mapping[str, Value]) -> tuple[str, ...]:
    """GGUF names the rule that splits text and cannot hold another: say so when it matters."""
    before = Tokenizer.from_json(tokenizer)
    after = Tokenizer.from_json(gguf_tokenizer_json(GgufHeader(vocabulary, {}), "the new file"))
    texts = (*PROMPTS.values(), *_PROBES)
    wrong = [text for text in texts if before.encode(text) != after.encode(text)]
    if not wrong:
        return ()
    return (
        f"the new file's vocabulary splits some texts in another way, such as {wrong[0]!r}: "
        "tokenizer.json does not follow DeepSeek's rule",
    )


def _llama_cpp_limits(config: ModelConfig) -> tuple[str, ...]:
    """What llama.cpp has compiled in and this model has otherwise."""
    found = []
    encoder = config.query_encoder
    if encoder is not None and encoder.rope_theta != QueryEncoderConfig().rope_theta:
        found.append(f"llama.cpp will use a query encoder theta of 1e6, not {encoder.rope_theta:g}")
    if config.decoder.rope_theta != DecoderConfig().rope_theta:
        found.append(
            f"llama.cpp refuses a decoder rope theta of {config.decoder.rope_theta:g}; it wants 1e4"
        )
    wanted = LLAMA_CPP_GLOBAL_BLOCKS.intersection(range(config.sam.num_layers))
    if wanted != set(config.sam.global_blocks):
        found.append(
            f"llama.cpp will run SAM's blocks {sorted(wanted)} over the whole map, not "
            f"{sorted(config.sam.global_blocks)}, and read the page wrongly"
        )
    return tuple(found)


def _refuse_overwrite(checkpoint: Checkpoint, dst: Path) -> None:
    """A source must not be written over while it is read, and nothing at all but an earlier result
    of the same source; nor may other weights stand beside the new ones, since a reader could not
    tell which are the model's."""
    is_gguf = is_gguf_name(dst)
    targets = [dst / SINGLE_NAME]
    if is_gguf:
        targets = [dst, dst.with_name(f"mmproj-{dst.name}")]
    sources = {file.path.resolve() for file in checkpoint.open_files}
    if sources.intersection(target.resolve() for target in targets):
        raise UsageError(f"{dst} is the source itself. Choose another DST.")
    above = next((folder for folder in dst.parents if folder.exists()), dst)
    if not above.is_dir():
        raise UsageError(f"{above} is a file, so {dst} cannot be in it. Choose another DST.")
    if is_gguf and dst.is_dir():
        raise UsageError(f"{dst} is a folder. Choose another DST.")
    if not is_gguf and dst.exists() and not dst.is_dir():
        raise UsageError(f"{dst} is a file. Choose a folder, or a name that ends in .gguf.")
    others = {INDEX_NAME, *(path.name for path in dst.glob("*.safetensors"))} - {SINGLE_NAME}
    found = sorted(name for name in others if (dst / name).exists())
    if found:
        raise UsageError(f"{dst} holds another model's {found[0]}. Choose an empty folder.")
    names = ("config.json", "tokenizer.json", *COMPANIONS)
    found = [] if is_gguf else [name for name in names if (dst / name).is_file()]
    if found and not _is_earlier_result(checkpoint.config, dst):
        raise UsageError(f"{dst} holds another {found[0]}. Choose an empty folder.")
    for target in targets:
        if target.is_file() and not _is_made_of(target, weights_digest(checkpoint.files)):
            raise UsageError(
                f"{target} is there, and not by ocr2 convert of these weights. Delete it, or "
                "choose another DST."
            )


def _is_made_of(weights: Path, digest: str) -> bool:
    """Whether a file says that it was converted from the weights of this digest."""
    try:
        with WeightFile(weights) as file:
            is_folder = weights.name == SINGLE_NAME
            metadata = read_metadata(file) if is_folder else read_header(file).metadata
    except ModelError:  # something else, or damaged
        return False
    return metadata.get(SOURCE_KEY) == digest


def _is_earlier_result(config: ModelConfig, dst: Path) -> bool:
    """By its config, in either naming."""
    try:
        data = json.loads((dst / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return data == original_config(config) or (not config.is_v1 and data == native_config(config))
