"""What can be asked of this host: cores, memory, its CUDA cards. Imports no torch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ocr2cli.errors import UsageError

# What NVIDIA's driver shows, on Linux and inside WSL.
_CUDA_FILES = ("/dev/nvidiactl", "/dev/dxg")


def num_cores() -> int:
    """Cores this process may use (affinity and cgroups, not just what the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def host_memory_available() -> int:
    """Bytes the host can still hand out; 8 GB where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 8_000_000_000


def expects_cuda(device: str, dtype: str) -> bool:
    """Whether a model will most likely run on a CUDA device: asked for, or `auto` where there is a
    driver. For plans that only change speed, being wrong at times; int8 runs on the CPU."""
    if device == "auto":
        return dtype != "int8" and any(map(os.path.exists, _CUDA_FILES))
    return device.startswith("cuda")


def cuda_memory_free(device: str) -> int | None:
    """Bytes free on the card that torch calls so, by NVIDIA's own program: a process that plans
    loads no torch. None where that program is not there or says nothing that can be read."""
    number = int(device.partition(":")[2] or 0)
    # Torch counts the visible cards; the program knows all of them, by number or by UUID.
    visible = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
    if number >= len(visible) and visible:
        return None
    card = visible[number].strip() if visible else str(number)
    query = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i", card]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return int(done.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def check_int8_device(name: str) -> None:
    """Raises: UsageError when --dtype int8 is asked for on anything but a CPU."""
    if name not in ("auto", "cpu"):
        raise UsageError(
            f"--dtype int8 runs on a CPU only, not on {name}. Use --device cpu, or --dtype bf16."
        )
