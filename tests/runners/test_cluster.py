"""How a cluster is chosen, and what a private one leaves: without Ray."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from ocr2cli.errors import EngineError, UsageError
from ocr2cli.runners.cluster import Cluster, _locked, _meant, _temp_folder


@pytest.mark.parametrize(
    ("given", "there", "expected"),
    [
        ("", "", ""),
        ("", "10.0.0.3:6379", "10.0.0.3:6379"),
        ("auto", "10.0.0.3:6379", "auto"),
        ("local", "10.0.0.3:6379", ""),
        ("", "local", ""),
    ],
)
def test_the_flag_beats_the_environment_and_local_is_a_private_cluster(
    given: str, there: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", there)
    assert _meant(given) == expected


@pytest.mark.parametrize(
    ("given", "there", "words"),
    [
        ("ray://h:10001", "", "--address ray://h:10001: the Ray client is not supported"),
        ("", "ray://h:10001", "RAY_ADDRESS=ray://h:10001: the Ray client is not supported"),
        ("127.0.0.1", "", "--address 127.0.0.1: give HOST:PORT, e.g. 127.0.0.1:6379"),
        ("", "head", "RAY_ADDRESS=head: give HOST:PORT"),
    ],
)
def test_an_address_that_names_no_cluster_is_refused_by_where_it_was_given(
    given: str, there: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", there)
    with pytest.raises(UsageError) as caught:
        Cluster(given)
    assert str(caught.value).startswith(words)


def test_a_cluster_with_another_token_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**settings: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.3:6379.")

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("ocr2cli.runners.cluster._keep_stdout_clean", lambda: None)
    with pytest.raises(EngineError, match="the same token of Ray's"):
        Cluster("auto")


def test_folders_of_processes_that_were_killed_are_removed_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead, live, fresh = (tmp_path / f"ocr2-ray-{name}" for name in ("dead", "live", "fresh"))
    for folder in (dead, live, fresh):
        (folder / "session").mkdir(parents=True)
    for folder in (dead, live):
        os.utime(folder, (0, 0))
    (tmp_path / "ocr2-ray-link").symlink_to(live)
    lock = _locked(live)
    made, own = _temp_folder()
    assert live.is_dir() and not dead.exists()
    os.close(lock)
    os.utime(made, (0, 0))
    again, other = _temp_folder()
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {fresh.name, "ocr2-ray-link", Path(made).name, Path(again).name}
    os.close(own)
    os.close(other)
