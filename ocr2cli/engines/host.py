"""What can be asked of this host: cores, memory, bf16, its CUDA cards. Imports no torch."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from ocr2cli.engines.cgroups import cores_allowed, memory_left
from ocr2cli.errors import UsageError

# What NVIDIA's driver shows, on Linux and inside WSL.
_CUDA_FILES = ("/dev/nvidiactl", "/dev/dxg")
# torch knows a dozen more, which nothing here was written for.
_DEVICES = re.compile(r"auto|cpu|mps|cuda(:([0-9]|[1-9][0-9]))?")

# Where the system does not tell.
_UNKNOWN_MEMORY = 8_000_000_000

# What oneDNN wants of an x86 processor for products in bf16; those without bf16 instructions
# multiply in float32 from bf16 operands.
_AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

# By number or by name; a part of a name will do.
_CARD = re.compile(r"[0-9]+|(GPU|MIG)-.*")


def num_cores(root: Path = Path("/")) -> int:
    """Cores this process may use, by its affinity and the quotas of its control groups."""
    if hasattr(os, "sched_getaffinity"):
        cores = max(1, len(os.sched_getaffinity(0)))
    else:
        cores = os.cpu_count() or 1
    return min(cores, cores_allowed(root) or cores)


def host_memory_available(root: Path = Path("/")) -> int:
    """Bytes this process can still get, by what the host has left and the limits of its control
    groups; 8 GB where the system does not tell."""
    try:
        available = _memory_facts(root).get("MemAvailable", _UNKNOWN_MEMORY)
    except OSError:
        available = _UNKNOWN_MEMORY
    left = memory_left(root)
    return available if left is None else min(available, left)


def addresses_left(limit: int = 0) -> int | None:
    """Bytes of addresses that each new process may have, used or not, by `limit` (0: none) and this
    process's own. None: any number."""
    limits = [limit] if limit else []
    try:
        import resource
    except ImportError:
        pass
    else:
        own = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [own] if own != resource.RLIM_INFINITY else []
    return min(limits, default=None)


def promises_left(root: Path = Path("/")) -> int | None:
    """Bytes that all processes together can still be promised, where the system promises none that
    it has not got. None: any number."""
    try:
        if (root / "proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2":
            facts = _memory_facts(root)
            return max(0, facts["CommitLimit"] - facts["Committed_AS"])
    except (OSError, KeyError):
        pass
    return None


def has_bf16_products(root: Path = Path("/")) -> bool:
    """Whether torch will find that this processor multiplies bf16; False where the system does not
    tell. For plans: `model.processor` asks torch itself."""
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return False
    flags: set[str] = set()
    for line in lines:
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    return flags >= _AVX512


def _memory_facts(root: Path) -> dict[str, int]:
    """Bytes by the names of /proc/meminfo. Raises: OSError where there is none."""
    lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
    words = (line.split() for line in lines if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) * 1024 for name, number, _ in words}


def expects_cuda(device: str, dtype: str) -> bool:
    """Whether a model will most likely run on a CUDA device: asked for, or `auto` where there is a
    driver. For plans that only change speed, being wrong at times; int8 runs on the CPU."""
    if device == "auto":
        is_hidden = _visible_cards() == []
        return dtype != "int8" and not is_hidden and any(map(os.path.exists, _CUDA_FILES))
    return device.startswith("cuda")


def cuda_memory_free(device: str) -> int | None:
    """Bytes free on the card that torch calls so, by NVIDIA's own program: a process that plans
    loads no torch. None where that program is not there or says nothing that can be read."""
    number = device.partition(":")[2] or "0"
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.free"]
    query.append("--format=csv,noheader,nounits")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        cards = [_Card(*line.split(", ")) for line in done.stdout.splitlines() if line]
        free = [int(card.free_mib) << 20 for card in _candidates(cards, int(number))]
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None
    return min(free, default=None)


class _Card(NamedTuple):
    """A line of nvidia-smi's answer."""

    number: str
    uuid: str
    name: str
    free_mib: str


def _candidates(cards: list[_Card], number: int) -> list[_Card]:
    """The card that torch gives this number, or several where it cannot be told: CUDA counts the
    fastest first unless CUDA_DEVICE_ORDER says by bus, and NVIDIA's program counts by bus."""
    visible = _visible_cards()
    if number >= len(cards if visible is None else visible):
        return []
    wanted = str(number) if visible is None else visible[number]
    if not wanted.isdecimal():
        return [card for card in cards if card.uuid.startswith(wanted)]
    is_by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if is_by_bus or len({card.name for card in cards}) == 1:
        return [card for card in cards if card.number == wanted]
    return cards


def _visible_cards() -> list[str] | None:
    """Those that CUDA_VISIBLE_DEVICES names, as CUDA reads it: up to the first word that is no
    card, such as -1. None where it is not set, and all are visible."""
    words = os.environ.get("CUDA_VISIBLE_DEVICES")
    if words is None:
        return None
    return list(takewhile(_CARD.fullmatch, map(str.strip, words.split(","))))


def check_device(name: str, dtype: str) -> None:
    """Raises: UsageError for a name that is no device here, or int8 on anything but a CPU."""
    if not _DEVICES.fullmatch(name):
        raise UsageError(f"--device {name}: write cpu, cuda, cuda:1 or mps")
    if dtype == "int8" and name not in ("auto", "cpu"):
        raise UsageError(
            f"--dtype int8 runs on a CPU only, not on {name}. Use --device cpu, or --dtype bf16."
        )
