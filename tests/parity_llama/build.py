"""llama-mtmd-cli from the source package of llama-cpp-python on PyPI, built once into a folder."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
TARGET = "llama-mtmd-cli"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_BUILD_TOOLS=ON",
)  # fmt: skip


def llama_mtmd_cli(cache: Path) -> Path:
    """The program, built when it is not there yet: about 15 minutes on two cores.

    Needs cmake, a C++ compiler and, for the download, pip with a network.
    """
    program = cache / "build" / "bin" / TARGET
    if not program.is_file():
        source = unpack(download(cache), cache)
        build = str(cache / "build")
        run(["cmake", "-S", str(source), "-B", build, *OPTIONS])
        run(["cmake", "--build", build, "--target", TARGET, "-j", str(os.cpu_count() or 2)])
    return program


def download(cache: Path) -> Path:
    """The source package, by pip: its index and its mirror settings apply."""
    cache.mkdir(parents=True, exist_ok=True)
    name = f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not (cache / name).is_file():
        run([
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation",
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
