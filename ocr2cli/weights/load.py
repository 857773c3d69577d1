"""Checkpoint to model: every tensor read straight into its place, in the dtype wanted.

Knows the name map and torch; knows nothing about pages or devices' choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ocr2cli.errors import ModelError
from ocr2cli.model.config import ModelConfig
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.linear import Linear
from ocr2cli.model.model import OcrModel
from ocr2cli.model.moe import MixtureOfExperts
from ocr2cli.model.quantized import expect_int8
from ocr2cli.model.vision import VisionEncoder
from ocr2cli.weights.checkpoint import Checkpoint, open_checkpoint
from ocr2cli.weights.hub import ModelFiles
from ocr2cli.weights.names import model_params
from ocr2cli.weights.params import Param
from ocr2cli.weights.tensors import TORCH_DTYPES, is_finite, read_into, read_tensor
from ocr2cli.weights.weight_file import StoredTensor, WeightFile

ALL_PARTS = ("vision", "decoder")
# Threads that copy from the file: fresh memory costs as much as the copy, and both go in parallel.
_READERS = 4


def load_model(
    model: ModelFiles | Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    parts: Collection[str] = ALL_PARTS,
    check_finite: bool = True,
    int8_decoder: bool = False,
    matrices: torch.dtype | None = None,
) -> OcrModel | VisionEncoder | Decoder:
    """Load the parts asked for, ready for inference (eval mode, no gradients).

    parts: {"vision", "decoder"} gives an OcrModel, one of them that part alone; only its tensors
    are read. check_finite: refuse NaN and infinity, at about the speed of memory.
    int8_decoder: on a CPU, quantise the decoder's matrices one by one as they are read, from the
    stored values whatever their type; `dtype` is that of all the rest.
    matrices: the dtype in which the linear layers' weights and the experts are kept, where it is
    not `dtype`: bfloat16 under float32 takes half the memory, and each product widens its own.
    Raises: ModelError naming the file and tensor, before any data is read where headers tell.
    """
    checkpoint = open_checkpoint(model)
    try:
        module, prefix = _build(checkpoint.config, frozenset(parts))
        wants_int8 = int8_decoder and "decoder" in parts
        int8_matrices = expect_int8(_decoder_of(module)) if wants_int8 else {}
        kept_as = dict.fromkeys(matrix_names(module), matrices or dtype)

        def read(param: Param) -> tuple[str, torch.Tensor]:
            name = param.name.removeprefix(prefix)
            matrix = int8_matrices.get(param.name.removeprefix("decoder."))
            tensor = read_param(
                checkpoint,
                param,
                dtype=_exact_dtype(checkpoint, param) if matrix else kept_as.get(name, dtype),
                device=device,
                check_finite=check_finite,
            )
            if matrix:
                tensor = matrix.take(param.name.rpartition(".")[2], tensor)
            return name, tensor

        wanted = [p for p in model_params(checkpoint.config) if p.part in parts and p.is_used]
        readers = min(_num_readers(checkpoint, wanted, int8_matrices), torch.get_num_threads())
        pool = ThreadPoolExecutor(readers)
        try:
            tensors = dict(pool.map(read, wanted))
        finally:
            pool.shutdown(cancel_futures=True)
        checkpoint.check_unchanged()
    finally:
        checkpoint.close()
    module.load_state_dict(tensors, assign=True)
    return module.requires_grad_(False).eval()


def load_vision(
    model: ModelFiles | Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    check_finite: bool = True,
    matrices: torch.dtype | None = None,
) -> VisionEncoder:
    """`load_model` of the vision part alone."""
    module = load_model(
        model,
        dtype=dtype,
        device=device,
        parts=("vision",),
        check_finite=check_finite,
        matrices=matrices,
    )
    assert isinstance(module, VisionEncoder)
    return module


def load_decoder(
    model: ModelFiles | Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    check_finite: bool = True,
    int8: bool = False,
    matrices: torch.dtype | None = None,
) -> Decoder:
    """`load_model` of the decoder alone."""
    module = load_model(
        model,
        dtype=dtype,
        device=device,
        parts=("decoder",),
        check_finite=check_finite,
        int8_decoder=int8,
        matrices=matrices,
    )
    assert isinstance(module, Decoder)
    return module


def read_param(
    checkpoint: Checkpoint,
    param: Param,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    check_finite: bool = False,
) -> torch.Tensor:
    """One of our parameters, put together from its stored pieces."""
    out = torch.empty(param.shape, dtype=dtype, device=device)
    for piece in checkpoint.pieces(param):
        file, stored = checkpoint.table[piece.name]
        box = out[piece.index] if piece.index else out
        read_into(file, stored, box)
        if check_finite and not is_finite(box):
            raise _not_finite(file, stored, dtype)
    return out


def _num_readers(
    checkpoint: Checkpoint, wanted: Sequence[Param], int8_matrices: Collection[str]
) -> int:
    """Fewer where each holds a matrix that is given up once it is int8: 300 MB in 16 bits."""
    on_the_way = [p for p in wanted if p.name.removeprefix("decoder.") in int8_matrices]
    if any(_exact_dtype(checkpoint, param) == torch.float32 for param in on_the_way):
        return 1
    return 2 if on_the_way else _READERS


def _exact_dtype(checkpoint: Checkpoint, param: Param) -> torch.dtype:
    """The 16-bit float type in which all of a parameter is stored, else float32, which holds the
    values of every other type too."""
    stored = {checkpoint.table[piece.name][1].dtype for piece in checkpoint.pieces(param)}
    narrow = {name for name, dtype in TORCH_DTYPES.items() if dtype.itemsize == 2}
    return TORCH_DTYPES[stored.pop()] if len(stored) == 1 and stored <= narrow else torch.float32


def matrix_names(module: nn.Module) -> list[str]:
    """The parameters that a product of `model/linear.py` takes: those that may be kept narrower
    than the arithmetic."""
    names = []
    for name, part in module.named_modules():
        if isinstance(part, Linear):
            names.append(f"{name}.weight")
        elif isinstance(part, MixtureOfExperts):
            names += [f"{name}.experts_gate_up", f"{name}.experts_down"]
    return names


def _not_finite(file: WeightFile, stored: StoredTensor, dtype: torch.dtype) -> ModelError:
    if dtype is torch.float16 and is_finite(read_tensor(file, stored)):
        return ModelError(
            f"{file.path}: {stored.name} holds values too large for float16. Use --dtype bf16."
        )
    return ModelError(
        f"{file.path}: {stored.name} holds NaN or infinity. Download the file again; if it stays "
        "so, the checkpoint is broken."
    )


def _build(
    config: ModelConfig, parts: frozenset[str]
) -> tuple[OcrModel | VisionEncoder | Decoder, str]:
    """The module without memory, and the prefix its names lack."""
    unknown = parts - set(ALL_PARTS)
    if unknown or not parts:
        raise ValueError(f"parts are {ALL_PARTS}, not {sorted(parts)}")
    with torch.device("meta"), _NoValues():
        if parts == {"vision"}:
            return VisionEncoder(config), "vision."
        if parts == {"decoder"}:
            return Decoder(config.decoder), "decoder."
        return OcrModel(config), ""


def _decoder_of(module: OcrModel | VisionEncoder | Decoder) -> Decoder:
    part = module.decoder if isinstance(module, OcrModel) else module
    assert isinstance(part, Decoder)
    return part


class _NoValues(TorchFunctionMode):
    """Leaves out random initial values: the checkpoint has the real ones.

    Not for the cost of drawing them: on the meta device `normal_` and `mul` are written in Python
    and their first call imports torch's compiler and sympy, which doubles the time to start a
    worker.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.randn:
            return torch.empty(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("normal_", "mul"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
