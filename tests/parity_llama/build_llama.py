"""llama.cpp's programs from the source package of llama-cpp-python on PyPI, built once."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
PROGRAMS = ("llama-mtmd-cli", "llama-quantize")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_TOOLS=ON",
)  # fmt: skip


def build_programs(cache: Path, programs: Sequence[str] = PROGRAMS) -> Path:
    """The folder of the programs, which are built when one is not there yet.

    Needs cmake, a C++ compiler and, for the download, pip with a network.
    """
    folder = cache / "build" / "bin"
    if not all((folder / name).is_file() for name in programs):
        source = unpack(download(cache), cache)
        build = str(cache / "build")
        run(["cmake", "-S", str(source), "-B", build, *OPTIONS])
        jobs = str(os.cpu_count() or 2)
        run(["cmake", "--build", build, "--target", *programs, "-j", jobs])
    return folder


def download(cache: Path) -> Path:
    """The source package, by pip: its index and its mirror settings apply."""
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not (cache / name).is_file():
        run([
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--no-binary", PACKAGE, "--dest", str(cache), f"{PACKAGE}=={VERSION}",
        ])  # fmt: skip
    return cache / name


def unpack(package: Path, cache: Path) -> Path:
    """The vendored llama.cpp tree."""
    source = cache / package.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"
    if not source.is_dir():
        with tarfile.open(package) as archive:
            archive.extractall(cache, filter="data")
    return source


def run(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)
