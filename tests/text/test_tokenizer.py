"""Encoding and decoding with a corner of DeepSeek's real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocr2cli.errors import ModelError
from ocr2cli.text.tokenizer import BOS_TOKEN, EOS_TOKEN, Tokenizer
from ocr2cli.text.vocabulary import tokenizer_json

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/prompt_vocabulary.json").read_text())
TOKENIZER = Tokenizer.from_json(json.dumps(GOLDEN["tokenizer"]))
KNOWN_IDS = sorted(GOLDEN["tokenizer"]["model"]["vocab"].values())


def test_special_tokens_are_found_by_name_at_their_documented_ids() -> None:
    assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (0, 1)
    names = ["<image>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>", "<td>"]
    assert [TOKENIZER.id_of(name) for name in names] == list(range(128815, 128822))
    assert TOKENIZER.id_of("<|nonsense|>") is None
    assert TOKENIZER.ids_of(("<|nonsense|>", names[1], names[0])) == (128816, 128815)
    assert TOKENIZER.vocab_size == len(KNOWN_IDS)


def test_printable_ascii_and_white_space_have_the_documented_ids() -> None:
    for character in "!.19":
        assert TOKENIZER.encode(character) == [ord(character) - 30]
    assert TOKENIZER.encode(" ") == [223] and TOKENIZER.encode("\n") == [201]


def test_encoding_adds_no_special_token_and_recognises_those_inside() -> None:
    assert TOKENIZER.encode("<td>.</td>") == [128821, 16, 128822]
    assert TOKENIZER.encode("") == []


def test_decoding_keeps_tables_and_boxes_and_cuts_one_end_token() -> None:
    text = "<table><tr><td>1</td></tr></table><|ref|>a<|/ref|><|det|>[[1,2,3,4]]<|/det|>"
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([*ids, 1]) == text
    assert TOKENIZER.decode([*ids, 1, 1]) == text + EOS_TOKEN
    assert TOKENIZER.decode([1, *ids]) == EOS_TOKEN + text
    assert TOKENIZER.decode([]) == TOKENIZER.decode([1]) == ""


def test_an_id_without_a_token_decodes_to_nothing() -> None:
    assert TOKENIZER.decode([16, 129_279, 16]) == ".."


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_every_text_survives_the_round_trip(text: str) -> None:
    if not text.endswith(EOS_TOKEN):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_a_missing_file_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json there"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": 3}', "\x00", "nonsense"])
def test_what_is_no_tokenizer_is_a_model_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"not a tokenizer\.json") as caught:
        Tokenizer.from_file(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_vocabulary_that_makes_the_library_panic_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], nano_folder: Path
) -> None:
    description = json.loads((nano_folder / "tokenizer.json").read_text(encoding="utf-8"))
    description["model"]["continuing_subword_prefix"] = "x" * 12
    with pytest.raises(ModelError, match="continuing_subword_prefix"):
        Tokenizer.from_json(json.dumps(description))
    assert capfd.readouterr().err == ""

    class PanicException(BaseException):
        """As pyo3 has it."""

    class Core:
        @staticmethod
        def from_str(text: str) -> None:
            raise PanicException("range end index\nout of range")

    monkeypatch.setattr("tokenizers.Tokenizer", Core)
    with pytest.raises(ModelError, match=r"not a tokenizer\.json \(range end index out of range\)"):
        Tokenizer.from_json("{}")


def test_a_vocabulary_that_is_not_byte_level_is_refused() -> None:
    other = {**GOLDEN["tokenizer"], "decoder": {"type": "Fuse"}}
    with pytest.raises(ModelError, match="byte-level"):
        Tokenizer.from_json(json.dumps(other))


def test_a_vocabulary_without_the_end_token_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="eos"):
        Tokenizer.from_json(json.dumps(GOLDEN["tokenizer"]), eos="<eos>")


def test_truncation_and_padding_in_the_file_are_ignored() -> None:
    padding = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
    padding |= {"pad_id": 2, "pad_type_id": 0, "pad_token": "x"}
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    other = {**GOLDEN["tokenizer"], "padding": padding, "truncation": truncation}
    assert Tokenizer.from_json(json.dumps(other)).encode("....,,,,") == TOKENIZER.encode("....,,,,")


def _gguf_lists() -> tuple[list[str], list[str], list[int]]:
    """The golden's vocabulary as a GGUF file lists it: one string and one type an id."""
    model = GOLDEN["tokenizer"]["model"]
    tokens = [f"[PAD{n}]" for n in range(129_280)]
    types = [5] * len(tokens)
    for token, token_id in model["vocab"].items():
        tokens[token_id], types[token_id] = token, 1
    for added in GOLDEN["tokenizer"]["added_tokens"]:
        types[added["id"]] = 3
    return tokens, [" ".join(pair) for pair in model["merges"]], types


def test_a_gguf_vocabulary_encodes_and_decodes_as_the_original() -> None:
    rebuilt = Tokenizer.from_json(tokenizer_json(*_gguf_lists(), pre="deepseek-v3"))
    assert rebuilt.vocab_size == TOKENIZER.vocab_size
    for text in [*GOLDEN["ids"], "<td>12345</td> (Free) \u6f22\u5b57\u304b\u306a", BOS_TOKEN]:
        assert rebuilt.encode(text) == TOKENIZER.encode(text)
        assert rebuilt.decode(rebuilt.encode(text)) == text


@pytest.mark.parametrize("pre", ["llama-bpe", "deepseek-llm", "deepseek-coder", "default", ""])
def test_a_gguf_vocabulary_that_splits_otherwise_is_refused(pre: str) -> None:
    with pytest.raises(ModelError, match=rf"'{pre}'; only deepseek-v3 is known"):
        tokenizer_json(*_gguf_lists(), pre=pre)


def test_a_gguf_vocabulary_with_too_few_types_is_refused() -> None:
    tokens, merges, types = _gguf_lists()
    with pytest.raises(ModelError, match="types"):
        tokenizer_json(tokens, merges, types[:-1], pre="deepseek-v3")
