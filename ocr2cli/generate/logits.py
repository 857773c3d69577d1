"""Logits processors: rules that forbid or penalise the next token by what was written.

Each rule stands here as its definition, a pure function of (token history, logits), and, where
the definition is too slow for every step, as an incremental index that the tests hold to it.
Knows nothing about batches of sequences, caches or pages.

Letters: V vocabulary, B sequences, W window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ocr2cli.config import DecodeConfig, DryConfig

BAN = math.inf
# llama.cpp's guard against overflow: log of the largest float32, as it spells it.
LOG_FLOAT_MAX = 88.7228391


@dataclass(frozen=True, slots=True)
class NgramRule:
    """No n-gram twice. n: 1 or more. window: a match must start in the last `window` tokens of the
    history, 0 for no window. exempt: never banned. over_prompt: the history begins with the
    prompt."""

    n: int
    window: int = 0
    exempt: frozenset[int] = frozenset()
    over_prompt: bool = False

    @classmethod
    def of(cls, config: DecodeConfig, exempt_ids: Iterable[int]) -> Self | None:
        """None when the rule is off. Over the prompt without a window it is the plain
        transformers rule, which exempts nothing."""
        if config.no_repeat_ngram < 1:
            return None
        is_plain = config.ngram_over_prompt and not config.ngram_window
        exempt = frozenset() if is_plain else frozenset(exempt_ids)
        return cls(config.no_repeat_ngram, config.ngram_window, exempt, config.ngram_over_prompt)


def banned_tokens(history: Sequence[int], rule: NgramRule) -> set[int]:
    """Tokens that would complete an n-gram which is in the window already: the definition.

    Source: DeepSeek-OCR-2 process/ngram_norepeat.py (model-spec 9.1); without window and exempt
    ids, transformers' NoRepeatNGramLogitsProcessor (9.2).
    """
    length, n = len(history), rule.n
    if length < n:
        return set()
    prefix = list(history[length - n + 1 :])
    first = max(0, length - rule.window) if rule.window else 0
    found = {
        history[start + n - 1]
        for start in range(first, length - n + 1)
        if list(history[start : start + n - 1]) == prefix
    }
    return found - rule.exempt


def dry_penalties(history: Sequence[int], config: DryConfig) -> dict[int, float]:
    """What to subtract from the logit of each token that would continue a repeat.

    history: new tokens only. A token that follows an earlier occurrence of the last m tokens
    (overlaps count) costs multiplier * base ** (m - allowed_length), for the largest such m.
    last_n: tokens looked at; 0 turns the rule off, negative means all.
    Source: llama.cpp src/llama-sampler.cpp, without sequence breakers (model-spec 9.3).
    """
    if not config.multiplier or config.base < 1.0 or not config.last_n:
        return {}
    backwards = list(history[::-1] if config.last_n < 0 else history[: -config.last_n - 1 : -1])
    if len(backwards) <= config.allowed_length:
        return {}
    longest: dict[int, int] = {}
    for shift, repeat in enumerate(_z_function(backwards)):
        if shift and repeat >= config.allowed_length:
            follower = backwards[shift - 1]
            longest[follower] = max(longest.get(follower, 0), repeat)
    return {token: _dry_penalty(repeat, config) for token, repeat in longest.items()}


def no_repeat_ngram(history: Sequence[int], logits_V: Tensor, rule: NgramRule) -> Tensor:
    """logits: float32 [V]. Returns them with the banned tokens at -inf; the input is kept."""
    return _subtract(logits_V, dict.fromkeys(banned_tokens(history, rule), BAN))


def dry(history: Sequence[int], logits_V: Tensor, config: DryConfig) -> Tensor:
    """logits: float32 [V]. Returns them with the penalties taken off; the input is kept."""
    return _subtract(logits_V, dry_penalties(history, config))


def ban_repeats(logits_BV: Tensor, history_BW: Tensor, rule: NgramRule) -> Tensor:
    """`no_repeat_ngram` for a batch with tensor operations only, for a step that stays on a device.

    history: int64 [B, W], the last W = rule.window tokens, newest last, -1 where there is none
    yet. Returns new logits [B, V].
    """
    n, width = rule.n, history_BW.shape[1]
    if width < n:
        return logits_BV.clone()
    followers = history_BW[:, n - 1 :]
    is_match = followers >= 0
    if n > 1:
        prefix = history_BW[:, width - n + 1 :]
        grams = history_BW.unfold(1, n - 1, 1)[:, :-1]
        # The newest tokens are on the right, so a gram without a hole begins with a token.
        is_match = (grams == prefix[:, None]).all(-1) & (grams[..., 0] >= 0)
    for token in rule.exempt:
        is_match = is_match & (followers != token)
    limits = torch.full_like(followers, BAN, dtype=logits_BV.dtype).masked_fill(is_match, -BAN)
    return logits_BV.scatter_reduce(1, followers.clamp_min(0), limits, "amin")


class NgramIndex:
    """`banned_tokens` of a growing history, without going through it: a step looks up the last
    n - 1 tokens and visits the places in the window where they stood before.

    Remembers where each (n-1)-gram starts; `pop` takes tokens back (drafts that are only tried).
    Looks at what was pushed only when asked: a step that stays on a device has its own history.
    """

    def __init__(self, rule: NgramRule, history: Iterable[int] = ()) -> None:
        self._rule = rule
        self._tokens = list(history)
        self._starts: dict[tuple[int, ...], list[int]] = {}
        self._num_indexed = 0  # so many starts are known, of those that the tokens have room for

    def push(self, token: int) -> None:
        self._tokens.append(token)

    def pop(self, count: int) -> None:
        """Take the last `count` tokens back. Raises: IndexError when there are fewer."""
        kept = len(self._tokens) - count
        if kept < 0:
            raise IndexError(f"{count} tokens cannot be taken back of {len(self._tokens)}")
        for start in reversed(range(self._num_starts(kept), self._num_indexed)):
            gram = self._gram(start)
            self._starts[gram].pop()
            if not self._starts[gram]:
                del self._starts[gram]
            self._num_indexed = start
        del self._tokens[kept:]

    def banned(self) -> set[int]:
        """The tokens that may not come next."""
        self._catch_up()
        length, n = len(self._tokens), self._rule.n
        if length < n:
            return set()
        starts = self._starts[self._gram(length - n + 1)]
        if len(starts) == 1:
            return set()
        first = length - self._rule.window if self._rule.window else 0
        found = set()
        # The newest start is the prefix itself: nothing follows it yet.
        for start in reversed(starts[:-1]):
            if start < first:
                break
            found.add(self._tokens[start + n - 1])
        return found - self._rule.exempt

    def _catch_up(self) -> None:
        now = self._num_starts(len(self._tokens))
        for start in range(self._num_indexed, now):
            self._starts.setdefault(self._gram(start), []).append(start)
        self._num_indexed = now

    def _num_starts(self, length: int) -> int:
        """How many (n-1)-grams so many tokens hold."""
        return max(0, length - self._rule.n + 2)

    def _gram(self, start: int) -> tuple[int, ...]:
        return tuple(self._tokens[start : start + self._rule.n - 1])


class Rules:
    """All rules of one sequence: feed it tokens, ask what the next one costs."""

    def __init__(
        self, ngram: NgramRule | None, dry: DryConfig | None, prompt_ids: Sequence[int] = ()
    ) -> None:
        self.ngram, self.dry = ngram, dry
        over_prompt = prompt_ids if ngram and ngram.over_prompt else ()
        self._index = NgramIndex(ngram, over_prompt) if ngram else None
        self._written: list[int] = []

    def push(self, token: int) -> None:
        if self._index:
            self._index.push(token)
        if self.dry:
            self._written.append(token)

    def pop(self, count: int) -> None:
        """Take the last `count` tokens back."""
        if self._index:
            self._index.pop(count)
        if self.dry and count:
            del self._written[-count:]

    def penalties(self) -> dict[int, float]:
        """What to subtract from the next token's logits: token id -> amount, BAN to forbid."""
        found = dry_penalties(self._written, self.dry) if self.dry else {}
        if self._index:
            for token in self._index.banned():
                found[token] = BAN
        return found


def _subtract(logits_V: Tensor, penalties: dict[int, float]) -> Tensor:
    result = logits_V.clone()
    if penalties:
        tokens = torch.tensor(list(penalties), device=logits_V.device)
        result[tokens] -= torch.tensor(list(penalties.values()), device=logits_V.device)
    return result


def _dry_penalty(repeat: int, config: DryConfig) -> float:
    # llama.cpp keeps both as float32 and multiplies as double: 0.8 is not 0.8f.
    multiplier, base = float(np.float32(config.multiplier)), float(np.float32(config.base))
    exponent = repeat - config.allowed_length
    if base > 1.000001:
        exponent = min(exponent, int(LOG_FLOAT_MAX / math.log(base)))
    return float(np.float32(multiplier * base**exponent))


def _z_function(values: Sequence[int]) -> list[int]:
    """result[i]: length of the longest common prefix of values and values[i:]."""
    count = len(values)
    result = [count] + [0] * (count - 1)
    left = right = 0  # values[left:right] is the rightmost piece known to equal a prefix
    for i in range(1, count):
        same = min(right - i, result[i - left]) if i < right else 0
        while i + same < count and values[same] == values[i + same]:
            same += 1
        result[i] = same
        if i + same > right:
            left, right = i, i + same
    return result
