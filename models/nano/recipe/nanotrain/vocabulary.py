"""nano's vocabulary: single bytes, one token for each readable character, and DeepSeek's specials.

Writes tokenizer.json; knows nothing about training. The structure is DeepSeek-OCR-2's: byte-level
BPE with its pre-tokeniser, only the merges are ours (none but those that join the bytes of a
character).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from nanotrain.characters import BEYOND_ASCII

BOS, EOS, PAD = (
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<\uff5c\u2581pad\u2581\uff5c>",
)
SPECIALS = [
    BOS,
    EOS,
    PAD,
    "<image>",
    "<|ref|>",
    "<|/ref|>",
    "<|det|>",
    "<|/det|>",
    "<|grounding|>",
    "<td>",
    "</td>",
    "<tr>",
    "</tr>",
    "<|User|>",
    "<|Assistant|>",
]
FIRST_BYTE = 16
BOS_ID, EOS_ID, PAD_ID, IMAGE_ID = range(4)
NEWLINE_ID = FIRST_BYTE + ord("\n")
_SPECIAL = re.compile("|".join(re.escape(s) for s in SPECIALS))
_SPLIT = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_names() -> list[str]:
    """The printable stand-in of each byte, as byte-level BPE writes it (GPT-2's table)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in kept}
    for extra, byte in enumerate(b for b in range(256) if b not in names):
        names[byte] = chr(256 + extra)
    return [names[byte] for byte in range(256)]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(token -> id, merges). Ids: specials, bytes, then joined characters."""
    names = byte_names()
    vocab = {special: index for index, special in enumerate(SPECIALS)}
    vocab |= {name: FIRST_BYTE + byte for byte, name in enumerate(names)}
    merges: list[tuple[str, str]] = []
    following = FIRST_BYTE + 256
    for char in BEYOND_ASCII:
        parts = [names[byte] for byte in char.encode()]
        while len(parts) > 1:
            joined = parts[0] + parts[1]
            if joined not in vocab:
                vocab[joined] = following
                following += 1
                merges.append((parts[0], parts[1]))
            parts = [joined, *parts[2:]]
    return vocab, merges


def _char_ids() -> dict[str, int]:
    vocab, _ = vocabulary()
    names = byte_names()
    ids = {chr(byte): FIRST_BYTE + byte for byte in range(128)}
    ids |= {char: vocab["".join(names[b] for b in char.encode())] for char in BEYOND_ASCII}
    return ids


CHAR_IDS = _char_ids()


def encode(text: str) -> tuple[list[int], list[int]]:
    """(token ids, index of each token's first character). What tokenizer.json gives, without it."""
    ids: list[int] = []
    starts: list[int] = []
    at = 0
    while at < len(text):
        special = _SPECIAL.match(text, at) if text[at] == "<" else None
        ids.append(SPECIALS.index(special[0]) if special else CHAR_IDS[text[at]])
        starts.append(at)
        at += len(special[0]) if special else 1
    return ids, starts


def decode(ids: list[int]) -> str:
    names = {index: token for token, index in vocabulary()[0].items()}
    bytes_of = {name: byte for byte, name in enumerate(byte_names())}
    out = bytearray()
    for index in ids:
        if index < len(SPECIALS):
            out += SPECIALS[index].encode()
        elif index in names:
            out += bytes(bytes_of[c] for c in names[index])
    return out.decode("utf-8", "replace")


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    vocab, merges = vocabulary()
    added = [
        {
            "id": i,
            "content": s,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, s in enumerate(SPECIALS)
    ]
    isolated = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _SPLIT)
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*isolated, byte_level]},
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    _write(folder / "tokenizer.json", data)
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 8192,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    _write(
        folder / "special_tokens_map.json", {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    )


def _write(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", "utf-8")
