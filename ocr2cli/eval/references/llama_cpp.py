"""llama.cpp's `llama-mtmd-cli` on the GGUF pair, with the arguments of its own OCR test.

Knows the program's command line; nothing of its code is used. Source: model-spec 11.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from ocr2cli.config import DecodeConfig
from ocr2cli.errors import EngineError, UsageError
from ocr2cli.eval.cases import Case
from ocr2cli.eval.reference import Reference, ReferenceOutput
from ocr2cli.pages import PageImage
from ocr2cli.text.prompt import prompt_text
from ocr2cli.text.tokenizer import IMAGE_TOKEN

PROGRAM = "llama-mtmd-cli"
DEFAULT_NEW_TOKENS = 2048
TIMEOUT_S = 1800


def llama_cpp_reference(
    text_gguf: Path, mmproj_gguf: Path, *, program: str = "", weights_digest: str
) -> Reference:
    """llama.cpp on a pair of GGUF files. program: its path; empty: found on PATH.

    Raises: UsageError when there is no such program or the model is not a GGUF pair.
    """
    found = shutil.which(program or PROGRAM)
    if found is None:
        where = f"{program} is not a program" if program else f"{PROGRAM} is not on PATH"
        raise UsageError(f"--ref llama.cpp: {where}. Build llama.cpp and give it with --ref-bin.")
    for path in (text_gguf, mmproj_gguf):
        if path.suffix.lower() != ".gguf" or not path.is_file():
            raise UsageError(
                f"--ref llama.cpp needs the GGUF pair; {path.name!r} is no part of one. Make it "
                "with `ocr2 convert SRC model.gguf`, give --model model.gguf --mmproj FILE."
            )
    binary = Path(found)

    def read(case: Case, page: PageImage) -> ReferenceOutput:
        return _read(binary, text_gguf, mmproj_gguf, case, page)

    digest = hashlib.sha256(binary.read_bytes()).hexdigest()
    return Reference("llama.cpp", {"weights": weights_digest, "program": digest}, read)


def arguments(text_gguf: Path, mmproj_gguf: Path, image: Path, case: Case) -> list[str]:
    """The program's arguments for a page; the marker and the newline after it are its own."""
    prompt = (case.prompt_text or prompt_text(case.prompt)).replace(IMAGE_TOKEN, "").strip()
    return [
        "-m", str(text_gguf), "--mmproj", str(mmproj_gguf), "--image", str(image), "-p", prompt,
        "--chat-template", "deepseek-ocr", "--temp", "0", "--flash-attn", "off", "--no-warmup",
        "-n", str(case.decode.max_new_tokens or DEFAULT_NEW_TOKENS),
        *_repetition_arguments(case.decode),
    ]  # fmt: skip


def _repetition_arguments(decode: DecodeConfig) -> list[str]:
    if decode.dry is None:
        return []
    return [
        "--dry-multiplier", f"{decode.dry.multiplier:g}", "--dry-base", f"{decode.dry.base:g}",
        "--dry-allowed-length", str(decode.dry.allowed_length),
        "--dry-penalty-last-n", str(decode.dry.last_n),
        "--dry-sequence-breaker", "none",
    ]  # fmt: skip


def _read(binary: Path, text: Path, mmproj: Path, case: Case, page: PageImage) -> ReferenceOutput:
    from PIL import Image

    with tempfile.TemporaryDirectory(prefix="ocr2-ref-") as folder:
        # our pixels, not the file's: the program turns no EXIF, renders no PDF, drops alpha
        image = Path(folder) / "page.png"
        Image.fromarray(page.rgb).save(image)
        command = [str(binary), *arguments(text, mmproj, image, case)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise EngineError(
                f"{binary.name} took over {TIMEOUT_S} s for {case.id}. Give it a smaller page."
            ) from error
        except OSError as error:
            raise EngineError(f"{binary} cannot be run ({error.strerror}).") from error
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise EngineError(
            f"{binary.name} ended with {done.returncode} on {case.id}: {last[0]}. "
            "Run it by hand on the page to see why."
        )
    is_unlike = case.decode.dry is None and case.decode.no_repeat_ngram > 0
    notes = ("llama.cpp has no windowed n-gram rule; it ran without",) if is_unlike else ()
    return ReferenceOutput(done.stdout.decode("utf-8", "replace").strip(), notes=notes)
