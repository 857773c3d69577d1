"""What control groups leave this process, as those of a container do: cores and memory.

Files of both versions are read; one that is not there, or says "max", sets no limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# Limit, usage, and how memory.stat calls the bytes of files that are held while there is room.
_MEMORY_FILES = (
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
)


def cores_allowed(root: Path) -> int | None:
    """Cores by the tightest quota, a fraction counted as a whole one; None without a quota."""
    quotas = []
    for group in _groups(root, "cpu"):
        numbers = _numbers(group / "cpu.max")
        numbers = numbers or _numbers(group / "cpu.cfs_quota_us", group / "cpu.cfs_period_us")
        if len(numbers) == 2 and all(numbers):
            quotas.append(math.ceil(numbers[0] / numbers[1]))
    return min(quotas, default=None)


def memory_left(root: Path) -> int | None:
    """Bytes up to the nearest limit; None without a limit."""
    left = []
    for group in _groups(root, "memory"):
        for limit, usage, cached in _MEMORY_FILES:
            if numbers := _numbers(group / limit, group / usage):
                stat = dict(line.split() for line in _lines(group / "memory.stat"))
                reclaimable = sum(int(stat.get(name, 0)) for name in cached)
                left.append(max(0, numbers[0] - numbers[1] + reclaimable))
    return min(left, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's group and of each it lies in. A container may be shown its own
    group as the outermost, whatever /proc calls it: the folders named need not be there."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = mounted / controller if controllers else mounted  # version 1, version 2
        own = PurePosixPath(path.strip("/"))
        yield from (top / group for group in (own, *own.parents))


def _numbers(*files: Path) -> list[int]:
    """The files' words as numbers; none if one of them is something else."""
    words = [word for file in files for line in _lines(file) for word in line.split()]
    return [int(word) for word in words] if all(map(str.isdecimal, words)) else []


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
