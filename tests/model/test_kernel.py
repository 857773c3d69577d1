"""Kernels that are kept on disk: found again by the next process, and never trusted blindly."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ocr2cli.model.compiled import kernel
from ocr2cli.model.compiled.dot_rows import SHORT_FLOAT
from ocr2cli.model.processor import can_run, host_features

numba = pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ocr2" / "kernels"


SUM = numba.float32(numba.float32[::1])


def make(variant: str = "", signature: Any = SUM, **options: Any) -> Any:
    """A kernel of two functions, as the real ones are."""
    factor = np.float32(2)

    @numba.njit
    def scaled(x):  # type: ignore[no-untyped-def]
        return factor * x

    @kernel.compile_kernel(signature, variant, **options)
    def add_up(x):  # type: ignore[no-untyped-def]
        total = np.float32(0)
        for each in x:
            total += scaled(each)
        return total

    return add_up


def was_kept(made: Any) -> bool:
    """True if it was read, not compiled: only the compiler has more to say of its work."""
    (result,) = made.overloads.values()
    return result.metadata is None


THREE = np.ones(3, np.float32)


def test_a_kernel_is_compiled_once_and_then_read(folder: Path) -> None:
    first, second = make(), make()
    assert not was_kept(first)
    assert was_kept(second)
    assert first(THREE) == second(THREE) == 6
    assert len(list(folder.iterdir())) == 1
    with pytest.raises(TypeError):  # only what its signature says, as from njit with one
        second(np.ones(3))


def test_two_threads_that_want_the_same_kernel_compile_it_once(folder: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: make(), range(2)))
    assert sorted(map(was_kept, made)) == [False, True]
    assert all(kernel(THREE) == 6 for kernel in made)


@pytest.mark.skipif(
    not can_run(SHORT_FLOAT.features, host_features()), reason="no such vectors here"
)
def test_another_process_reads_it_in_its_own_time(folder: Path) -> None:
    """The kernels of a decoder, whose own files are made of each other's pieces."""
    code = (
        "import sys, time, torch\n"
        "from numba import types\n"
        "from ocr2cli.model.compiled import dot_rows, token_attention, token_products\n"
        "begin = time.process_time()\n"
        "products = token_products.TokenProducts(dot_rows.SHORT_FLOAT)\n"
        "attention = token_attention.TokenAttention(torch.float32)\n"
        "seconds = time.process_time() - begin\n"
        "torch.manual_seed(0)\n"
        "x, weight = torch.randn(5, 64), torch.randn(8, 64)\n"
        "y = products.product(x, weight)\n"
        "assert (y.double() - x.double() @ weight.double().T).abs().max() < 1e-4\n"
        "qkv, turn = torch.randn(2, 1, 3, 4, 16), torch.ones(2, 1, 16)\n"
        "keys, values = torch.randn(2, 4, 32, 16), torch.randn(2, 4, 32, 16)\n"
        "out = attention(qkv, turn, 0 * turn, keys, values, [0, 1], [3, 9])\n"
        "kept = [r.metadata is None for kernel in (products._run, attention._extend)\n"
        "        for r in kernel.overloads.values()]\n"
        "print(kept, seconds, float(y.sum()), float(out.sum()))\n"
    )
    words = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        words.append(re.fullmatch(r"(\[.*\]) (\S+) (.*)\n", done.stdout))
    (cold, slow, result), (warm, fast, same) = (each.groups() for each in words if each)
    assert (cold, warm) == ("[False, False]", "[True, True]")
    assert result == same
    assert float(fast) < float(slow) / 2


_VARIANTS = """
import sys
import numpy as np
from numba import njit, prange, types
from ocr2cli.model.compiled.kernel import compile_kernel

def make(factor):
    factor = np.float32(factor)

    @njit
    def scale(x_N, y_N):
        for n in range(len(x_N)):
            y_N[n] = np.sqrt(factor * factor) * x_N[n]

    floats = types.float32[::1]

    @compile_kernel(types.float32(floats), str(factor), parallel=True)
    def add_up(x_N):
        parts = np.empty(4, np.float32)
        for part in prange(4):
            y_N = np.empty_like(x_N)
            scale(x_N, y_N)
            parts[part] = y_N.sum()
        return parts.sum()

    return add_up

kernels = [make(factor) for factor in sys.argv[1:]]
kept = all(r.metadata is None for kernel in kernels for r in kernel.overloads.values())
print(kept, *(float(kernel(np.ones(5, np.float32))) for kernel in kernels))
"""


@pytest.mark.parametrize("order", [("2", "3", "7"), ("7", "3", "2")])
def test_variants_that_were_compiled_in_different_processes_do_not_meet(
    folder: Path, order: tuple[str, ...]
) -> None:
    """numba counts the functions of a process to tell those of one name apart, so two processes
    give theirs the same names; and of two pieces of code of one name the first one loaded would
    run for both. A float32 kernel answered for a bf16 one that way."""

    def run(*factors: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", _VARIANTS, *factors], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    for factor in order:
        assert run(factor) == ["False", str(20.0 * int(factor))]
    assert run(*order) == ["True", *(str(20.0 * int(factor)) for factor in order)]


@pytest.mark.parametrize(
    "change", ["variant", "signature", "options", "source", "processor", "numba", "setting"]
)
def test_whatever_it_is_made_from_makes_another(
    monkeypatch: pytest.MonkeyPatch, folder: Path, change: str
) -> None:
    make()
    said: dict[str, Any] = {}
    if change == "variant":
        said["variant"] = "float 8"
    elif change == "signature":
        said["signature"] = numba.float64(numba.float32[::1])
    elif change == "options":
        said["fastmath"] = True
    elif change == "source":
        monkeypatch.setattr(kernel, "_source", lambda: "edited")
    elif change == "processor":
        from numba.core.codegen import CPUCodegen

        before = CPUCodegen.magic_tuple
        monkeypatch.setattr(CPUCodegen, "magic_tuple", lambda self: (*before(self), "+new"))
    elif change == "numba":
        monkeypatch.setattr(numba, "__version__", "1.2.3")
    else:
        monkeypatch.setenv("NUMBA_OPT", "1")
    assert not was_kept(make(**said))
    assert len(list(folder.iterdir())) == 2


def test_an_edited_file_of_the_folder_changes_the_source(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copy = tmp_path / "compiled"
    copy.mkdir()
    for path in Path(kernel.__file__).parent.glob("*.py"):
        (copy / path.name).write_bytes(path.read_bytes())
    before = kernel._source()
    monkeypatch.setattr(kernel, "__file__", str(copy / "kernel.py"))
    kernel._source.cache_clear()
    try:
        assert kernel._source() == before
        text = (copy / "dot_rows.py").read_text()
        (copy / "dot_rows.py").write_text(text.replace("CHANNELS = 4", "CHANNELS = 8"))
        kernel._source.cache_clear()
        assert kernel._source() != before
    finally:
        kernel._source.cache_clear()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def with_checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest() + data


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": flip_a_bit,
    "no pickle": lambda path: path.write_bytes(with_checksum(b"code")),
    "of something else": lambda path: path.write_bytes(with_checksum(pickle.dumps((1, 2)))),
    "others can write": lambda path: path.chmod(0o666),
    "unreadable": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_anew_and_replaced(folder: Path, damage: str) -> None:
    make()
    (path,) = folder.iterdir()
    DAMAGES[damage](path)
    again = make()
    assert not was_kept(again)
    assert again(THREE) == 6
    if damage != "unreadable":
        assert was_kept(make())
    assert len(list(folder.iterdir())) == 1, "nothing half written is left"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners on this system")
def test_another_users_file_is_not_read(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    make()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert not was_kept(make())


def test_what_is_kept_is_for_its_owner_alone(folder: Path) -> None:
    make()
    (path,) = folder.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_written_costs_nothing_but_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        made = make()
        assert made(THREE) == 6
        assert not was_kept(made)


def test_without_a_home_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert make()(THREE) == 6
    assert not folder.exists()


def test_processes_that_start_together_all_have_their_kernel(folder: Path) -> None:
    code = (
        "import numpy as np\n"
        "from numba import types\n"
        "from ocr2cli.model.compiled.kernel import compile_kernel\n"
        "@compile_kernel(types.float32(types.float32[::1]), '')\n"
        "def add_up(x):\n"
        "    return x.sum()\n"
        "assert add_up(np.ones(3, np.float32)) == 3\n"
    )
    script = folder.parents[1] / "kernels.py"
    script.write_text(code)
    together = [subprocess.Popen([sys.executable, str(script)]) for _ in range(4)]
    assert [each.wait(60) for each in together] == [0, 0, 0, 0]
    assert len(list(folder.iterdir())) == 1


def test_nothing_is_kept_where_numba_counts_its_functions_otherwise(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    from numba.core.bytecode import FunctionIdentity

    monkeypatch.setattr(FunctionIdentity, "_unique_ids", iter(range(10_000, 99_999)))
    for _ in range(2):
        made = make()
        assert not was_kept(made) and made(THREE) == 6
    assert not folder.exists()


def test_the_count_goes_on_where_it_was(folder: Path) -> None:
    from numba.core.bytecode import FunctionIdentity

    before = FunctionIdentity._unique_ids
    make()
    with pytest.raises(numba.core.errors.TypingError):
        make(signature=numba.void(numba.float32))
    assert FunctionIdentity._unique_ids is before
