"""Characters to ids and back, for the byte-level BPE vocabulary of this model family.

Knows nothing about prompts, chat templates (there are none here) or generation.

Source: model-spec 8.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocr2cli.errors import ModelError

if TYPE_CHECKING:
    import tokenizers

# The bars are U+FF5C and the underscores U+2581; the other special tokens are plain ASCII.
BOS_TOKEN = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS_TOKEN = "<\uff5cend\u2581of\u2581sentence\uff5c>"
IMAGE_TOKEN = "<image>"


class Tokenizer:
    """A vocabulary. Special tokens are found by name, never by number.

    bos_id, eos_id: ids of the tokens that begin and end a sequence.
    """

    def __init__(self, core: tokenizers.Tokenizer, *, bos: str, eos: str) -> None:
        self._core = core
        self._bytes_of_id: dict[int, bytes] = {}
        self.bos_id = self._require(bos)
        self.eos_id = self._require(eos)

    @classmethod
    def from_file(
        cls, path: Path | str, *, bos: str = BOS_TOKEN, eos: str = EOS_TOKEN
    ) -> Tokenizer:
        """Read a `tokenizer.json`.

        Raises: ModelError when it is missing, no tokenizer, or not byte-level.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"cannot read the tokenizer {path}: {error}. "
                "Put the checkpoint's tokenizer.json there."
            ) from error
        return cls.from_json(text, where=str(path), bos=bos, eos=eos)

    @classmethod
    def from_json(
        cls,
        text: str,
        *,
        where: str = "the tokenizer",
        bos: str = BOS_TOKEN,
        eos: str = EOS_TOKEN,
    ) -> Tokenizer:
        """Make a tokenizer of the text of a `tokenizer.json`; `where` names it in errors.

        Raises: ModelError.
        """
        import tokenizers

        try:
            description = json.loads(text)
            # Padding and truncation would change ids behind our back.
            description.update(padding=None, truncation=None)
            if (description.get("model") or {}).get("continuing_subword_prefix"):
                # byte-level vocabularies have none, and the library panics on a long one
                raise ValueError("its model has a continuing_subword_prefix")
            core = tokenizers.Tokenizer.from_str(json.dumps(description))
        except BaseException as error:  # the library raises bare Exception, and panics beside it
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise ModelError(
                f"{where} is not a tokenizer.json ({_one_line(error)}). Fetch the file again."
            ) from error
        if not _has_byte_level_decoder(description.get("decoder")):
            raise ModelError(
                f"{where} is not a byte-level vocabulary; DeepSeek-OCR models have one. "
                "Use the tokenizer.json that came with the weights."
            )
        return cls(core, bos=bos, eos=eos)

    @property
    def vocab_size(self) -> int:
        """Tokens with an id; the embedding may have more rows."""
        return int(self._core.get_vocab_size(with_added_tokens=True))

    def id_of(self, token: str) -> int | None:
        """Id of one token by its exact string, or None when the vocabulary lacks it."""
        found = self._core.token_to_id(token)
        return None if found is None else int(found)

    def ids_of(self, tokens: Iterable[str]) -> tuple[int, ...]:
        """Ids of those of the tokens that the vocabulary has."""
        found = (self.id_of(token) for token in tokens)
        return tuple(token_id for token_id in found if token_id is not None)

    def encode(self, text: str) -> list[int]:
        """Ids of a text. Special tokens inside it are recognised; none is added."""
        return list(self._core.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Special tokens stay, since tables and boxes are made of them.

        One end token at the end is cut. Bytes that are not UTF-8 become U+FFFD.
        """
        if ids and ids[-1] == self.eos_id:
            ids = ids[:-1]
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes one token stands for; none for an id without a token."""
        known = self._bytes_of_id.get(token_id)
        if known is None:
            known = _token_bytes(self._core.id_to_token(token_id) or "")
            self._bytes_of_id[token_id] = known
        return known

    def _require(self, token: str) -> int:
        found = self.id_of(token)
        if found is None:
            raise ModelError(
                f"the tokenizer has no token {token!r}. Use the tokenizer.json that came with "
                "the weights."
            )
        return found


def _has_byte_level_decoder(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    parts = decoder.get("decoders", [decoder])
    return any(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in parts)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's reversible map of every byte to a printable character, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(hidden)})
    return alphabet


_BYTE_OF_CHARACTER = _byte_alphabet()


def _token_bytes(token: str) -> bytes:
    """Added tokens stand for themselves; the others are written in the byte alphabet."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode("utf-8")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
