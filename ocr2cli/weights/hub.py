"""A model's name to the files that hold it: bundled, a folder, a GGUF pair, or the hub.

Knows names, places and downloads; knows nothing about what is in the files. huggingface_hub is
imported only when a hub name is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ocr2cli.errors import ModelError, UsageError
from ocr2cli.weights.read_safetensors import INDEX_NAME, shard_paths

HUB_NAMES = {
    "deepseek-ocr-2": "deepseek-ai/DeepSeek-OCR-2",
    "deepseek-ocr": "deepseek-ai/DeepSeek-OCR",
}
# The commit that each name stands for: weights of the same name read the same next year. Public
# projects that pin these repositories name them (the second also as `DEFAULT_HF_REVISION` in
# tenstorrent/tt-forge-models, deepseek/deepseek_ocr). NAME@main is whatever the hub has today.
PINNED = {
    "deepseek-ai/DeepSeek-OCR-2": "aaa02f3811945a91062062994c5c4a3f4c0af2b0",
    "deepseek-ai/DeepSeek-OCR": "9f30c71f441d010e5429c532364a86705536c53a",
}
# What a run reads. Code, images and pickles of a repository are never fetched.
HUB_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", INDEX_NAME, "*.safetensors")

logger = logging.getLogger("ocr2")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PROBE_S = 0.8


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where a model lies. name: as asked for. path: a folder, or the text .gguf with its mmproj."""

    name: str
    path: Path
    mmproj: Path | None = None

    @property
    def is_gguf(self) -> bool:
        return self.mmproj is not None


def is_gguf_name(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def resolve_model(name: str, mmproj: str = "") -> ModelFiles:
    """Find a model; a hub model that is not on this machine is downloaded.

    Raises: ModelError in one line, within a second when there is no network.
    """
    return find_model(name, mmproj) or ModelFiles(name, pull_model(name))


def find_model(name: str, mmproj: str = "") -> ModelFiles | None:
    """The same without any network: None for a hub model that is not on this machine.

    name: nano, deepseek-ocr-2, deepseek-ocr, a folder, a .gguf file, or OWNER/NAME[@REVISION].
    Raises: ModelError; UsageError for the vision half of what is no GGUF model.
    """
    files = _find_model(name, mmproj)
    if mmproj and not (files and files.is_gguf):
        raise UsageError(f"--mmproj {mmproj}: {name} is no .gguf file. Leave --mmproj out.")
    return files


def _find_model(name: str, mmproj: str) -> ModelFiles | None:
    if name == "nano":
        return ModelFiles(name, bundled_folder("nano"))
    if not name:  # the current folder, to the file system
        raise ModelError("the model's name is empty. Use nano, a folder or a .gguf file.")
    path = Path(os.path.expanduser(name))
    if is_gguf_name(path):
        return _gguf_pair(name, path, mmproj)
    if path.is_dir():
        return _folder(name, path, mmproj)
    if path.exists():
        raise ModelError(
            f"{path} is neither a folder nor a .gguf file. Give the model's folder; pickled "
            "weights (.bin, .pt, .pth) can run code and are never opened."
        )
    folder = cached_folder(*hub_repo(name))
    return ModelFiles(name, folder) if folder else None


def local_model(name: str, mmproj: str = "") -> ModelFiles:
    """The same for who only looks. Raises: ModelError that says how to get it."""
    if found := find_model(name, mmproj):
        return found
    raise ModelError(f"{name} is not on this machine: ocr2 models pull {name}")


def known_models() -> list[dict[str, str]]:
    """What `ocr2 models list` shows: name, about, path ("" when not on this machine)."""
    try:
        nano = str(bundled_folder("nano"))
    except ModelError:
        nano = ""
    rows = [{"name": "nano", "about": "bundled; small, for tests and demonstrations", "path": nano}]
    for name, repo in HUB_NAMES.items():
        folder = cached_folder(*hub_repo(name))
        about = f"{repo} on the hub, revision {PINNED[repo][:7]}"
        rows.append({"name": name, "about": about, "path": str(folder or "")})
    return rows


def bundled_folder(name: str) -> Path:
    """The folder of a bundled model: inside the installed package, or in the checkout.

    Raises: ModelError.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_models" / name, package.parent / "models" / name):
        if (folder / "config.json").is_file():
            return folder
    raise ModelError(
        f"the bundled model {name!r} is not in this installation. Reinstall ocr2cli, or give "
        "a model folder with --model."
    )


def hub_repo(name: str) -> tuple[str, str]:
    """(repository id, revision) of a hub name. Raises: ModelError for any other name.

    A known name without a revision is at its pinned commit; for another repository "" is the
    hub's main branch.
    """
    repo, _, revision = name.partition("@")
    if repo in HUB_NAMES:
        repo = HUB_NAMES[repo]
        revision = revision or PINNED[repo]
    if not _REPO.fullmatch(repo) or not re.fullmatch(r"[\w./-]*", revision):
        known = ", ".join(["nano", *HUB_NAMES])
        raise ModelError(
            f"there is no model {name!r}. Use one of {known}, a folder, a .gguf file, or "
            "OWNER/NAME of the hub."
        )
    return repo, revision


def cached_folder(repo: str, revision: str = "") -> Path | None:
    """The hub's local copy when it is complete, without any network; else None."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(
            repo, revision=revision or None, allow_patterns=list(HUB_FILES), local_files_only=True
        ))
        shard_paths(folder)
    except (OSError, ValueError, ModelError):
        return None
    is_whole = (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    return folder if is_whole else None


def pull_model(
    name: str, *, folder: Path | None = None, progress: Callable[[str], None] | None = None
) -> Path:
    """Download a hub model, or finish a download, and check it; returns its folder.

    folder: where to put it; None is the hub's own cache. progress: told each step in one line.
    Raises: ModelError in one line.
    """
    if name == "nano":
        return bundled_folder(name)
    repo, revision = hub_repo(name)
    tell = progress or (lambda line: None)
    try:
        _require_network(name, repo, revision)
    except ModelError:
        if folder is not None or (found := cached_folder(repo, revision)) is None:
            raise
        logger.warning("%s is here, but could not be checked: the hub does not answer", name)
        return found
    from huggingface_hub import snapshot_download

    tell(f"downloading {repo}")
    try:
        path = Path(snapshot_download(
            repo, revision=revision or None, allow_patterns=list(HUB_FILES), local_dir=folder
        ))
        tell("checking sha256")
        _verify(repo, revision, path)
    except ModelError:
        raise
    except Exception as error:  # the hub's HTTP and transfer libraries have errors of their own
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ModelError(
            f"{repo} could not be downloaded: {reason}. Run `ocr2 models pull {name}` again; it "
            "goes on where it stopped."
        ) from error
    return path


def _verify(repo: str, revision: str, folder: Path) -> None:
    """Compare every large file with the digest the hub states. A wrong one is removed."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision or None, files_metadata=True)
    for sibling in info.siblings or []:
        path = folder / sibling.rfilename
        # By the name: in the hub's own cache each file is a link that leads out of the folder.
        is_below = path.is_relative_to(folder) and ".." not in Path(sibling.rfilename).parts
        if sibling.lfs is None or not is_below or not path.is_file():
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sibling.lfs.sha256:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise ModelError(
                f"{path} is not what {repo} published (sha256 {digest[:12]}, expected "
                f"{sibling.lfs.sha256[:12]}); it was removed. Run `ocr2 models pull` again."
            )


def _require_network(name: str, repo: str, revision: str) -> None:
    """Raises: ModelError at once when the hub cannot be reached, in place of minutes of retries."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    elif not _answers(constants.ENDPOINT):
        reason = f"{constants.ENDPOINT} does not answer"
    else:
        return
    at = f" --revision {revision}" if revision else ""
    raise ModelError(
        f"{name} is not on this machine and {reason}. On a machine with a network run "
        f"`hf download {repo} --local-dir {repo.split('/')[1]}{at}`, copy that folder here and "
        "give it with --model FOLDER."
    )


def _answers(url: str) -> bool:
    """True when the host (or the proxy before it) takes a connection within a second."""
    target = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = target.port or (443 if target.scheme == "https" else 80)
    found = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((target.hostname or "", port), timeout=_PROBE_S).close()
        except OSError:
            return
        found.set()

    # A thread of its own: a name server that is silent holds getaddrinfo for many seconds.
    probe = threading.Thread(target=connect, daemon=True)
    probe.start()
    probe.join(_PROBE_S)
    return found.is_set()


def _folder(name: str, path: Path, mmproj: str) -> ModelFiles:
    """A folder of safetensors, or one that holds a single GGUF pair."""
    if (path / "config.json").is_file() or not any(path.glob("*.gguf")):
        return ModelFiles(name, path)
    texts = [file for file in sorted(path.glob("*.gguf")) if "mmproj" not in file.name]
    if len(texts) != 1:
        raise ModelError(
            f"{path} holds {len(texts)} text .gguf files. Name the one to use with --model."
        )
    return _gguf_pair(name, texts[0], mmproj)


def _gguf_pair(name: str, path: Path, mmproj: str) -> ModelFiles:
    if not path.is_file():
        raise ModelError(f"{path} is not there. Check the path given with --model.")
    if mmproj:
        vision = Path(os.path.expanduser(mmproj))
        if not vision.is_file():
            raise ModelError(f"{vision} is not there. Check the path given with --mmproj.")
        return ModelFiles(name, path, vision)
    return ModelFiles(name, path, _find_mmproj(path))


def _find_mmproj(path: Path) -> Path:
    """The vision half beside a text file: mmproj-NAME.gguf, or the only mmproj there."""
    own = path.with_name(f"mmproj-{path.name}")
    if own.is_file():
        return own
    found = [file for file in sorted(path.parent.glob("*mmproj*.gguf")) if file != path]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError(
            f"{path} is the text half of a model; no mmproj-*.gguf lies beside it. "
            "Name the vision half with --mmproj."
        )
    names = ", ".join(os.path.basename(file) for file in found[:4])
    raise ModelError(f"several mmproj files lie beside {path} ({names}). Name one with --mmproj.")
