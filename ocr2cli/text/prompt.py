"""The prompt table: names to exact strings, and a prompt with its page to token ids.

Knows nothing about models or decoding.

Source: model-spec 5.1 and 13.4.
"""

from __future__ import annotations

import difflib

from ocr2cli.errors import UsageError
from ocr2cli.text.tokenizer import IMAGE_TOKEN, Tokenizer

PROMPTS = {
    "markdown": "<image>\n<|grounding|>Convert the document to markdown.",
    "ocr": "<image>\nFree OCR.",
    "figure": "<image>\nParse the figure.",
    "describe": "<image>\nDescribe this image in detail.",
    "locate": "<image>\nLocate <|ref|>{what}<|/ref|> in the image.",
}

_MAX_WHAT = 500


def prompt_text(name: str) -> str:
    """The exact prompt of a name: `markdown`, `ocr`, `figure`, `describe` or `locate:WHAT`.

    Raises: UsageError for a name that is not in the table, or `locate` without its object.
    """
    head, colon, what = name.partition(":")
    if head == "locate":
        return PROMPTS["locate"].format(what=_checked_object(what))
    if colon or head not in PROMPTS:
        raise UsageError(_unknown_prompt(name))
    return PROMPTS[head]


def asks_for_text(prompt: str) -> bool:
    """True for the prompts whose answer is all of the page's text, with or without `<image>`."""
    whole = prompt if IMAGE_TOKEN in prompt else f"{IMAGE_TOKEN}\n{prompt.strip()}"
    return whole in (PROMPTS["markdown"], PROMPTS["ocr"])


def asks_for_boxes(prompt: str) -> bool:
    """True for the prompts that the models answer with labels and boxes."""
    return "<|grounding|>" in prompt or "<|ref|>" in prompt


def prompt_ids(
    tokenizer: Tokenizer, text: str, num_visual_tokens: int, image_token_id: int
) -> list[int]:
    """Ids of a whole prompt: begin token, text before the page, the page's places, text after it.

    text: holds `<image>` once; without it, the page is put in front on a line of its own, as
    llama.cpp does. Outer white space is cut, as the reference does.

    Raises: UsageError when `<image>` stands there more than once.
    """
    before, after = split_at_page(text)
    places = [image_token_id] * num_visual_tokens
    return [tokenizer.bos_id, *tokenizer.encode(before), *places, *tokenizer.encode(after)]


def is_text(text: str) -> bool:
    """False for half a character (JSON and command lines can hold one): no tokenizer takes it."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def split_at_page(text: str) -> tuple[str, str]:
    """The prompt's text before and after the page.

    Raises: UsageError when `<image>` stands there more than once.
    """
    before, *rest = text.strip().split(IMAGE_TOKEN)
    if len(rest) > 1:
        raise UsageError("the prompt has more than one <image>; a page is one image, keep one")
    return (before, rest[0]) if rest else ("", f"\n{before}")


def _checked_object(what: str) -> str:
    what = what.strip()
    if not what:
        raise UsageError("locate needs to know what: for example --prompt 'locate:the total'")
    # A special token in here would end the reference early and could add an instruction.
    if "<|" in what or IMAGE_TOKEN in what or len(what) > _MAX_WHAT or not is_text(what):
        raise UsageError(
            f"--prompt locate: takes up to {_MAX_WHAT} plain characters, without '<|' or <image>"
        )
    return what


def _unknown_prompt(name: str) -> str:
    near = difflib.get_close_matches(name, PROMPTS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"there is no prompt {name!r}.{hint} Choose one of markdown, ocr, figure, describe, "
        "locate:WHAT, or give your own text with --prompt-text."
    )
