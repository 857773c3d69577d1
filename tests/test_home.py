"""A user without a home, as in a container under a number of its own, gets no folder named `~`."""

from __future__ import annotations

import pwd
from pathlib import Path

import platformdirs
import pytest

from ocr2cli.cli.main import main
from ocr2cli.home import user_folder
from ocr2cli.model.compiled.kernel import kernel_folder
from ocr2cli.output.bucket import staging_folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Its working folder, which is empty."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(*command: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    return ended.value.code


@pytest.mark.usefixtures("homeless")
def test_it_is_told_apart() -> None:
    for kind in ("cache", "config", "state"):
        with pytest.raises(RuntimeError, match="no home folder"):
            user_folder(kind)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError):
        kernel_folder()


def test_a_path_that_an_older_platformdirs_could_not_resolve_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: f"~/.cache/{name}")
    with pytest.raises(RuntimeError, match="no home folder"):
        user_folder("cache")


def test_a_home_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder("cache") == tmp_path / "ocr2"


def test_a_run_reads_its_pages_and_leaves_nothing_but_its_output(
    homeless: Path, repo: Path
) -> None:
    page = repo / "examples" / "documents" / "notice.png"
    code = code_of("run", str(page), "-o", str(homeless / "out"), "--max-new-tokens", "8")
    assert code in (0, 5)
    assert [path.name for path in homeless.iterdir()] == ["out"]


def test_a_bucket_asks_where_to_keep_its_state(homeless: Path) -> None:
    assert staging_folder("s3://bucket/prefix", homeless) == homeless
    assert code_of("run", "page.png", "-o", "s3://bucket/prefix") == 2
    with pytest.raises(Exception, match=r"no home folder .* Say where: --state DIR"):
        staging_folder("s3://bucket/prefix", None)


def test_an_evaluation_keeps_no_cache(homeless: Path) -> None:
    assert code_of("eval", "--ref", "none", "--case", "note-kettle", "--quiet") in (0, 7)
    assert list(homeless.iterdir()) == []
