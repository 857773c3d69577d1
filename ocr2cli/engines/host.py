"""What can be asked of this host: cores, memory, int8 on its CPU. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

from ocr2cli.errors import UsageError


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


def check_int8_device(name: str) -> None:
    """Raises: UsageError when --dtype int8 is asked for on anything but a CPU."""
    if name not in ("auto", "cpu"):
        raise UsageError(
            f"--dtype int8 runs on a CPU only, not on {name}. Use --device cpu, or --dtype bf16."
        )
