"""Names to files: bundled, folders, GGUF pairs, the hub; and no network."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ocr2cli.errors import ModelError, UsageError
from ocr2cli.weights import hub
from ocr2cli.weights.hub import (
    ModelFiles,
    cached_folder,
    find_model,
    hub_repo,
    local_model,
    pull_model,
    resolve_model,
)


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", lambda url: True)


def test_a_folder_is_itself(tmp_path):
    assert resolve_model(str(tmp_path)) == ModelFiles(str(tmp_path), tmp_path)


def test_nano_is_found_in_the_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site" / "ocr2cli"
    module = package / "weights" / "hub.py"
    monkeypatch.setattr(hub, "__file__", str(module))
    checkout, installed = tmp_path / "site/models/nano", package / "_models/nano"
    with pytest.raises(ModelError, match="bundled model 'nano'"):
        resolve_model("nano")
    for folder in (checkout, installed):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        assert resolve_model("nano").path == folder
        assert pull_model("nano") == folder


def test_a_gguf_finds_its_mmproj_beside_it(tmp_path):
    text = tmp_path / "m-Q8_0.gguf"
    text.touch()
    with pytest.raises(ModelError, match="--mmproj"):
        resolve_model(str(text))
    lone = tmp_path / "mmproj-F16.gguf"
    lone.touch()
    assert resolve_model(str(text)).mmproj == lone
    assert resolve_model(str(tmp_path)) == ModelFiles(str(tmp_path), text, lone)
    (tmp_path / "mmproj-BF16.gguf").touch()
    with pytest.raises(ModelError, match="several mmproj"):
        resolve_model(str(text))
    assert resolve_model(str(text), str(lone)).mmproj == lone
    own = tmp_path / "mmproj-m-Q8_0.gguf"
    own.touch()
    assert resolve_model(str(text)).mmproj == own


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.gguf is not there"):
        resolve_model(str(tmp_path / "gone.gguf"))
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match=r"gone\.gguf is not there.*--mmproj"):
        resolve_model(str(tmp_path / "m.gguf"), str(tmp_path / "gone.gguf"))


def test_the_home_of_nobody_is_no_folder(tmp_path):
    with pytest.raises(ModelError, match="there is no model '~nosuchuser/m'"):
        resolve_model("~nosuchuser/m")
    (tmp_path / "m.gguf").touch()
    with pytest.raises(ModelError, match=r"v\.gguf is not there"):
        resolve_model(str(tmp_path / "m.gguf"), "~nosuchuser/v.gguf")


def test_an_empty_name_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="name is empty"):
        local_model("")


@pytest.mark.parametrize("name", ["nano", "folder", "owner/name"])
def test_a_vision_half_beside_what_is_no_gguf_file_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=rf"--mmproj half\.gguf: {name} is no \.gguf file"):
        find_model(name, "half.gguf")


def test_hub_names_and_revisions():
    for name in ("deepseek-ocr-2", "deepseek-ocr"):
        repo, commit = hub_repo(name)
        assert repo == hub.HUB_NAMES[name] and re.fullmatch("[0-9a-f]{40}", commit)
        assert hub_repo(f"{name}@main") == (repo, "main")
    assert hub_repo("deepseek-ai/DeepSeek-OCR-2") == ("deepseek-ai/DeepSeek-OCR-2", "")
    assert hub_repo("deepseek-ocr@abc123") == ("deepseek-ai/DeepSeek-OCR", "abc123")
    assert hub_repo("some/Model@refs/pr/1") == ("some/Model", "refs/pr/1")
    for wrong in ("nona", "a/b/c", "../x/y", "a/b@-;rm", ""):
        with pytest.raises(ModelError, match="no model"):
            hub_repo(wrong)


@pytest.mark.parametrize("why", ["HF_HUB_OFFLINE", "does not answer"])
def test_offline_is_one_line_within_a_second(monkeypatch, no_cache, why):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", why == "HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    with pytest.raises(ModelError, match=why) as caught:
        resolve_model("deepseek-ocr-2")
    assert time.monotonic() - start < 5  # the import of huggingface_hub is in it
    text = str(caught.value)
    assert "\n" not in text
    commit = hub.PINNED["deepseek-ai/DeepSeek-OCR-2"]
    download = "hf download deepseek-ai/DeepSeek-OCR-2 --local-dir DeepSeek-OCR-2"
    assert f"{download} --revision {commit}`" in text
    assert "--model FOLDER" in text


def test_a_silent_name_server_does_not_hold_the_probe(monkeypatch):
    def silent(*args, **options):
        time.sleep(3)
        raise OSError("timed out")

    monkeypatch.setattr(hub.socket, "create_connection", silent)
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    assert not hub._answers("https://hub.invalid")
    assert time.monotonic() - start < 1.5


def fill(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return str(folder)


def test_a_cached_model_needs_no_network(monkeypatch, tmp_path):
    folder = tmp_path / "snapshot"
    asked = []

    def snapshot(repo, **options):
        asked.append(options)
        return fill(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(hub, "pull_model", lambda name: pytest.fail("asked the network"))
    assert resolve_model("deepseek-ocr-2@abc").path == folder
    assert asked[0]["local_files_only"] is True
    assert asked[0]["revision"] == "abc"
    assert not any("py" in pattern or "bin" in pattern for pattern in asked[0]["allow_patterns"])


def test_a_half_downloaded_model_is_not_taken_for_whole(monkeypatch, tmp_path):
    folder = tmp_path / "snapshot"
    fill(folder)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: str(folder))
    assert cached_folder("a/b") == folder
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00002-of-00002.safetensors"}}'
    )
    assert cached_folder("a/b") is None


def published(digest: str, at: str):
    def model_info(self, repo, *, revision=None, files_metadata=False):
        assert revision == at and files_metadata
        lfs = SimpleNamespace(sha256=digest)
        return SimpleNamespace(siblings=[
            SimpleNamespace(rfilename="model.safetensors", lfs=lfs),
            SimpleNamespace(rfilename="config.json", lfs=None),
            SimpleNamespace(rfilename="not-downloaded.bin", lfs=lfs),
        ])

    return model_info


def test_pull_checks_the_hubs_sha256_and_removes_a_wrong_file(monkeypatch, tmp_path, online):
    folder = tmp_path / "snapshot"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **o: fill(folder))
    right = hashlib.sha256(b"{}").hexdigest()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", published(right, "abc"))
    steps: list[str] = []
    assert pull_model("a/b@abc", progress=steps.append) == folder
    assert steps == ["downloading a/b", "checking sha256"]
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", published("0" * 64, "abc"))
    with pytest.raises(ModelError, match=r"model\.safetensors is not what a/b published"):
        pull_model("a/b@abc")
    assert not (folder / "model.safetensors").exists()


def test_a_file_outside_of_the_models_folder_is_never_removed(monkeypatch, tmp_path, online):
    folder = tmp_path / "snapshot"
    fill(folder)
    (tmp_path / "mine").write_text("precious")
    lfs = SimpleNamespace(sha256="0" * 64)
    names = ("../mine", str(tmp_path / "mine"), "../snapshot/../mine")
    told = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, lfs=lfs) for name in names])
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **o: str(folder))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: told)
    assert pull_model("a/b") == folder
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_known_name_is_pulled_and_checked_at_its_pinned_commit(monkeypatch, tmp_path, online):
    asked = []

    def snapshot(repo, **options):
        asked.append((repo, options["revision"]))
        return fill(tmp_path / "snapshot")

    commit = hub.PINNED["deepseek-ai/DeepSeek-OCR-2"]
    right = hashlib.sha256(b"{}").hexdigest()
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", published(right, commit))
    pull_model("deepseek-ocr-2")
    assert asked == [("deepseek-ai/DeepSeek-OCR-2", commit)]
    rows = {row["name"]: row["about"] for row in hub.known_models()}
    assert commit[:7] in rows["deepseek-ocr-2"]
    assert asked[1:] == [(repo, hub.PINNED[repo]) for repo in hub.HUB_NAMES.values()]


class ReadTimeout(Exception):
    """As the hub's own HTTP library raises it: neither an OSError nor a ValueError."""


BROKEN_DOWNLOADS = [OSError("connection reset\nby peer"), ReadTimeout("timed out\nreading")]


def test_a_whole_model_in_the_cache_is_pulled_without_a_network_and_said_to_be_unchecked(
    monkeypatch, tmp_path, caplog
):
    folder = tmp_path / "snapshot"
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **o: fill(folder))
    assert pull_model("a/b") == folder  # HF_HUB_OFFLINE is set for every test
    assert "a/b is here, but could not be checked" in caplog.text
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        pull_model("a/b", folder=tmp_path / "elsewhere")


@pytest.mark.parametrize("error", [*BROKEN_DOWNLOADS, ReadTimeout()], ids=repr)
def test_a_failed_download_is_one_line_that_says_how_to_go_on(monkeypatch, online, error):
    def fail(repo, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match="goes on where it stopped") as caught:
        pull_model("a/b")
    assert "\n" not in str(caught.value)
    reason = str(error).partition("\n")[0] or "ReadTimeout"
    assert f"a/b could not be downloaded: {reason}. Run" in str(caught.value)


@pytest.mark.parametrize("error", BROKEN_DOWNLOADS, ids=repr)
def test_digests_that_cannot_be_fetched_are_one_line_too(monkeypatch, tmp_path, online, error):
    def fail(self, repo, **options):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **o: fill(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(ModelError, match="goes on where it stopped") as caught:
        pull_model("a/b")
    assert "\n" not in str(caught.value)


def test_finding_a_local_model_imports_neither_torch_nor_the_hub():
    code = (
        "import sys; from ocr2cli.weights.hub import resolve_model; resolve_model('/tmp');"
        "import ocr2cli.weights.checkpoint, ocr2cli.weights.digest;"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
