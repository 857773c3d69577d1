"""The wheel, built and used as a stranger uses it: from an environment of its own, outside the
repository. torch and the other packages are lent by the environment that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
         "--wheel-dir", folder, REPO],
        check=True,
    )  # fmt: skip
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment's bin folder, with the wheel in it."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", wheel], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    # A plain folder on the path: the editable ocr2cli of that environment stays unseen.
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return home / "bin"


def ocr2(environment: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["XDG_CACHE_HOME"] = str(folder / "cache")
    return subprocess.run(
        [environment / "ocr2", *argv], cwd=folder, env=env, capture_output=True, text=True
    )


def test_the_wheel_holds_the_model_the_page_and_the_suite_and_no_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("_models/nano/model.safetensors", "serve/page.html", "_eval/gates.toml"):
        assert f"ocr2cli/{name}" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ocr2cli"}
    assert not [name for name in names if "recipe" in name or "__pycache__" in name]


def test_the_installed_command_reads_a_document_with_the_model_inside(
    environment: Path, tmp_path: Path
) -> None:
    where = ocr2(environment, tmp_path, "models", "path", "nano").stdout
    assert str(environment.parent) in where
    document = REPO / "examples" / "documents" / "letter.pdf"
    words = ["run", str(document), "--pages", "1", "--prompt", "ocr", "--max-new-tokens", "40"]
    done = ocr2(environment, tmp_path, *words, "-o", "out")
    assert done.returncode in (0, 5), done.stderr
    command = [sys.executable, "-m", "ocr2cli", *words, "-o", str(tmp_path / "here")]
    here = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert here.returncode == done.returncode, here.stderr
    text = (tmp_path / "out" / "letter.md").read_text()
    # The bundled model errs, in the wheel as in the repository.
    assert "Ledger" in text and text == (tmp_path / "here" / "letter.md").read_text()


def test_help_and_the_dry_run_work_there(environment: Path, tmp_path: Path) -> None:
    assert "serve" in ocr2(environment, tmp_path, "--help").stdout
    document = str(REPO / "examples" / "documents" / "letter.pdf")
    plan = ocr2(environment, tmp_path, "run", document, "-o", "out", "--dry-run")
    assert plan.stdout.startswith("3 pages of 1 document "), plan.stderr
