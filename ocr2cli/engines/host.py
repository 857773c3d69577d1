"""Cores and memory of this host, as far as this process may use them. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


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
