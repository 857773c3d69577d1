"""What a process may take of a host: its control groups count, though a container sees it all."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest
import torch

from ocr2cli.engines import host

GB = 1_000_000_000
MANY = frozenset(range(64))
V2, V1 = "0::/docker/abc\n", "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of 64 cores with 200 GB to give."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: MANY, raising=False)
    _write(tmp_path, {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {200 * GB // 1024} kB\n"})
    return tmp_path


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")


def _v2(own: str, **files: str) -> dict[str, str]:
    """Files of the group `own`, each with _ for the dot of its name."""
    at = f"sys/fs/cgroup/{own}"
    return {f"{at}/{name.replace('_', '.', 1)}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1), ("max 100000", 64),
     ("9900000 100000", 64), ("", 64), ("some words here", 64), ("100000 0", 64)],
)  # fmt: skip
def test_a_groups_share_of_the_cores_counts_a_fraction_as_one(
    root: Path, quota: str, cores: int
) -> None:
    _write(root, {"proc/self/cgroup": V2} | _v2("docker/abc", cpu_max=quota))
    assert host.num_cores(root) == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", 64), ("250000", 3), ("1000", 1)])
def test_the_first_version_of_groups_has_two_files_for_it(
    root: Path, quota: str, cores: int
) -> None:
    at = "sys/fs/cgroup/cpu/docker/abc"
    files = {f"{at}/cpu.cfs_quota_us": f"{quota}\n", f"{at}/cpu.cfs_period_us": "100000\n"}
    _write(root, {"proc/self/cgroup": V1} | files)
    assert host.num_cores(root) == cores


def test_the_tightest_of_a_group_and_those_it_lies_in_counts(root: Path) -> None:
    _write(root, {"proc/self/cgroup": V2})
    _write(root, _v2("docker/abc", cpu_max="800000 100000", memory_max="max", memory_current="0"))
    _write(root, _v2("docker", cpu_max="300000 100000", memory_max=f"{50 * GB}\n",
                     memory_current=f"{10 * GB}\n"))  # fmt: skip
    assert (host.num_cores(root), host.host_memory_available(root)) == (3, 40 * GB)


@pytest.mark.parametrize("cgroup", [V2, "0::/\n", "0::/../../abc\n"])
def test_a_container_that_sees_its_own_group_as_the_root_is_held_by_it(
    root: Path, cgroup: str
) -> None:
    """Whatever /proc calls the group: the host's name for it, none, or one from outside."""
    _write(root, {"proc/self/cgroup": cgroup})
    _write(root, _v2(".", cpu_max="100000 100000", memory_max=f"{4 * GB}", memory_current="0"))
    assert (host.num_cores(root), host.host_memory_available(root)) == (1, 4 * GB)


def test_file_cache_that_a_group_can_give_back_is_not_counted_as_taken(root: Path) -> None:
    stat = f"anon {GB}\nfile {5 * GB}\nshmem {GB}\ninactive_file {3 * GB}\nactive_file {GB}\n"
    _write(root, {"proc/self/cgroup": V2})
    _write(root, _v2("docker/abc", memory_max=f"{8 * GB}", memory_current=f"{6 * GB}",
                     memory_stat=stat))  # fmt: skip
    assert host.host_memory_available(root) == 6 * GB


@pytest.mark.parametrize(
    ("limit", "available"),
    [(8 * GB, 4 * GB), (9223372036854771712, 200 * GB // 1024 * 1024), (2 * GB, 0)],
)
def test_the_first_versions_memory_counts_all_groups_below(
    root: Path, limit: int, available: int
) -> None:
    at = "sys/fs/cgroup/memory/docker/abc"
    stat = f"inactive_file {GB}\ntotal_inactive_file {2 * GB}\ntotal_active_file 0\n"
    _write(root, {"proc/self/cgroup": V1, f"{at}/memory.limit_in_bytes": f"{limit}\n",
                  f"{at}/memory.usage_in_bytes": f"{6 * GB}\n",
                  f"{at}/memory.stat": stat})  # fmt: skip
    assert host.host_memory_available(root) == available


def test_a_host_without_groups_gives_what_it_has(root: Path) -> None:
    assert host.num_cores(root) == 64
    assert host.host_memory_available(root) == 200 * GB // 1024 * 1024


def test_a_system_that_tells_nothing_gives_8_gb(tmp_path: Path) -> None:
    assert host.host_memory_available(tmp_path) == 8 * GB


FLAGS = "fpu sse2 avx avx2 avx512f avx512dq avx512bw avx512vl"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (f"flags\t\t: {FLAGS}\nflags\t: fpu\n", True),
        (f"flags\t\t: {FLAGS.replace(' avx512bw', '')}\n", False),
        (f"vmx flags\t: {FLAGS}\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("", False),
    ],
)
def test_bf16_products_are_planned_with_where_the_system_tells_of_them(
    root: Path, cpuinfo: str, expected: bool
) -> None:
    assert not host.has_bf16_products(root)
    _write(root, {"proc/cpuinfo": f"processor\t: 0\n{cpuinfo}"})
    assert host.has_bf16_products(root) == expected


def test_this_hosts_bf16_products_are_planned_as_torch_finds_them() -> None:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("bf16 is looked up in /proc/cpuinfo, on Linux and x86 only")
    assert host.has_bf16_products() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("mode", "left"), [("0", None), ("1", None), ("2", 30 * GB), ("", None)]
)
def test_a_system_that_promises_no_more_than_it_has_says_how_much(
    root: Path, mode: str, left: int | None
) -> None:
    facts = f"CommitLimit: {50 * GB // 1024} kB\nCommitted_AS: {20 * GB // 1024} kB\n"
    _write(root, {"proc/sys/vm/overcommit_memory": f"{mode}\n", "proc/meminfo": facts})
    assert host.promises_left(root) == left
    (root / "proc/meminfo").unlink()
    assert host.promises_left(root) is None


def test_a_shells_own_limit_bounds_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (9 * GB, 9 * GB))
    assert (host.addresses_left(), host.addresses_left(GB)) == (9 * GB, GB)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert (host.addresses_left(), host.addresses_left(GB)) == (None, GB)
