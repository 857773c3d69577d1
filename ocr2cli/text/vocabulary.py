"""A GGUF file's token list as the text of a `tokenizer.json`.

Knows nothing about how a GGUF file is read, and nothing about ids once the tokenizer is made.

Source: model-spec 8 (pre-tokeniser), 7.3 (`tokenizer.ggml.*` keys); llama.cpp's token types.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ocr2cli.errors import ModelError

# tokenizer.ggml.token_type
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
# Kanji, then hiragana and katakana.
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def tokenizer_json(
    tokens: Sequence[str], merges: Sequence[str], types: Sequence[int], *, pre: str
) -> str:
    """The `tokenizer.json` text that encodes and decodes as the GGUF file's vocabulary.

    tokens: one string an id. merges: "left right" pairs in rank order. types: llama.cpp's token
    type of each id. pre: `tokenizer.ggml.pre`.

    Raises: ModelError when the lists disagree or `pre` is not DeepSeek-V3's, which llama.cpp's
    converter writes for this family; deepseek-llm and deepseek-coder split in other ways.
    """
    if pre != "deepseek-v3":
        raise ModelError(
            f"the GGUF vocabulary splits text by {pre!r}; only deepseek-v3 is known. Use a GGUF "
            "file of DeepSeek-OCR."
        )
    if len(tokens) != len(types):
        raise ModelError(f"the GGUF vocabulary has {len(tokens)} tokens but {len(types)} types")
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": _bpe(tokens, merges, types),
    }
    return json.dumps(description, ensure_ascii=False)


def _added_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": token_id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _bpe(tokens: Sequence[str], merges: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {
            token: token_id
            for token_id, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (_NORMAL, _CONTROL, _USER_DEFINED)
        },
        "merges": [merge.split(" ", 1) for merge in merges],
    }


def _pre_tokenizer() -> dict[str, Any]:
    split = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (r"\p{N}{1,3}", _CJK, _WORDS)
    ]
    return {"type": "Sequence", "pretokenizers": [*split, _byte_level()]}


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
