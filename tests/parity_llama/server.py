"""`ocr2 run --engine openai` against a real llama-server that holds the bundled model.

    python tests/parity_llama/server.py [--bin PATH/TO/llama-server]

Builds llama-server unless --bin names one. Started as it must be, it reads the bundled suite's
notes through the whole command, with the native engine's own text but on the page where llama.cpp
is known to compute otherwise (models/llama-cpp.md). Started without its flags, or with the chat
template that it takes for a file that names none, the run ends before page one with an error that
names them. Exit code 1 when either does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO))

from build_llama import build_programs, run  # noqa: E402

FLAGS = ("--chat-template", "deepseek-ocr", "--no-jinja", "--special")
PAGES = ("note-door", "note-kettle", "note-shelf", "note-ferry")
# Where llama.cpp pads by half a pixel otherwise: see models/llama-cpp.md.
MAY_DIFFER = ("note-ferry",)
# float32 throughout, as models/llama-cpp.md compares; no repetition rule on either side.
COMPUTING = (
    "--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32", "--no-warmup",
    "-c", "8192", "-np", "2",
)  # fmt: skip
READING = ("--max-new-tokens", "64", "--no-repeat-ngram", "0", "--no-recover")
ENGINE_FAILED = 6


def main() -> int:
    parser = argparse.ArgumentParser(description="Read through a real llama-server.")
    parser.add_argument("--bin", default="", help="a llama-server that is built already")
    parser.add_argument("--cache", default=str(REPO / "build" / "llama"), help="build folder")
    options = parser.parse_args()
    program = Path(options.bin) if options.bin else built(Path(options.cache))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = folder / "nano-f32.gguf"
        ocr2("convert", str(REPO / "models" / "nano"), str(pair), "--quant", "f32", "-q")
        is_good = [reads(program, pair, folder)]
        # Our own GGUF names a template that adds nothing: only --special is then missing.
        for flags, prompt in (((), "markdown"), (("--chat-template", "chatml"), "ocr")):
            is_good.append(refuses(program, pair, folder, flags, prompt))
    return 0 if all(is_good) else 1


def built(cache: Path) -> Path:
    program = build_programs(cache) / "llama-server"
    if not program.is_file():
        jobs = str(os.cpu_count() or 2)
        build = str(cache / "build")
        run(["cmake", "--build", build, "--target", "llama-server", "-j", jobs])
    return program


def reads(program: Path, pair: Path, folder: Path) -> bool:
    """Both engines over the same pages; prints each page's verdict."""
    pages = [str(REPO / "eval" / "bundled" / "pages" / f"{name}.png") for name in PAGES]
    is_good = True
    with llama_server(program, pair, FLAGS) as url:
        for prompt in ("ocr", "markdown"):
            there, here = folder / f"there-{prompt}", folder / f"here-{prompt}"
            asked = ("run", *pages, "--prompt", prompt, *READING, "-o")
            done = ocr2(*asked, str(there), "--engine", "openai", "--server", url, codes=(0, 5))
            print(done.stderr.strip().splitlines()[0], flush=True)
            ocr2(*asked, str(here), "--dtype", "f32", "--runner", "inline", codes=(0, 5))
            for name in PAGES:
                is_good &= compare(prompt, name, row(there, name), row(here, name))
    return is_good


def compare(prompt: str, name: str, there: dict[str, object], here: dict[str, object]) -> bool:
    """The same text, but for the pages that may differ, and a sidecar of the same shape."""
    raw, own = str(there["raw"]), str(here["raw"])
    same = "same text" if raw == own else f"differs\n  llama-server {raw!r}\n  ocr2         {own!r}"
    print(
        f"{prompt} {name}: {there['status']}, {there['new_tokens']} new tokens, {same}", flush=True
    )
    is_read = there["status"] != "failed" and raw.strip() != ""
    is_same = raw == own or name in MAY_DIFFER
    return is_read and is_same and set(there) == set(here) and there["finish_reason"] is not None


def row(out: Path, name: str) -> dict[str, object]:
    line: dict[str, object] = json.loads((out / f"{name}.jsonl").read_text(encoding="utf-8"))
    return line


def refuses(program: Path, pair: Path, folder: Path, flags: tuple[str, ...], prompt: str) -> bool:
    """A server started otherwise: exit 6 with the flags, before page one."""
    page = str(REPO / "eval" / "bundled" / "pages" / f"{PAGES[0]}.png")
    asked = ("run", page, "--prompt", prompt, "-o", str(folder / "refused"), "--engine", "openai")
    with llama_server(program, pair, flags) as url:
        done = ocr2(*asked, "--server", url, codes=(0, 5, ENGINE_FAILED))
    shown = " ".join(flags) or "no flags"
    print(f"started with {shown}: exit {done.returncode}, {done.stderr.strip()}", flush=True)
    is_named = "--chat-template deepseek-ocr --no-jinja" in done.stderr
    return done.returncode == ENGINE_FAILED and is_named


def ocr2(*argv: str, codes: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ocr2cli", *argv]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return done


@contextmanager
def llama_server(program: Path, pair: Path, flags: tuple[str, ...]) -> Iterator[str]:
    """The server's address while the block runs, on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mmproj = str(pair.with_name(f"mmproj-{pair.name}"))
    command = [
        str(program), "-m", str(pair), "--mmproj", mmproj, "--host", "127.0.0.1",
        "--port", str(port), *COMPUTING, *flags,
    ]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(f"http://127.0.0.1:{port}", process)
            yield f"http://127.0.0.1:{port}"
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-3000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            process.wait(30)


def wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError("llama-server never became healthy")


if __name__ == "__main__":
    sys.exit(main())
