"""Continuous batching: admit, prefill, decode one step for all, retire. Tokens in, tokens out.

Knows nothing about text, pages or processes; keys are opaque.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ocr2cli.config import DRAFT_MODES, DecodeConfig
from ocr2cli.errors import EngineError, PageFault
from ocr2cli.generate.draft import Guess, best_feed
from ocr2cli.generate.fixed_step import FixedStep
from ocr2cli.generate.greedy import Choice
from ocr2cli.generate.in_flight import InFlight
from ocr2cli.generate.logits import NgramRule
from ocr2cli.generate.prompts import PromptFeeder
from ocr2cli.generate.scheduler import Chunk, Plan, Scheduler
from ocr2cli.generate.sequence import Sequence as Running
from ocr2cli.generate.sequence import State
from ocr2cli.generate.step import Cache, Decoder
from ocr2cli.generate.step_costs import StepCosts
from ocr2cli.generate.step_runner import StepRunner
from ocr2cli.generate.track import Finished, Policy, Track
from ocr2cli.generate.tuning import Tuning
from ocr2cli.model.kv_cache import KVCache
from ocr2cli.model.memory import empty_cache, is_out_of_memory
from ocr2cli.pages import PageError

__all__ = ["Finished", "Generator", "Statistics"]

logger = logging.getLogger("ocr2")

MakeCache = Callable[[int, int], Cache]


@dataclass(slots=True)
class Statistics:
    """Counts since the start. decode_rows / decode_steps is the mean batch."""

    decode_steps: int = 0
    decode_rows: int = 0
    new_tokens: int = 0
    prefill_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    preemptions: int = 0
    out_of_memory: int = 0

    @property
    def acceptance(self) -> float:
        """Share of drafted tokens that the model wrote itself; 0 without drafts."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Generator:
    """Greedy continuous batching over the slots of one KV cache.

    num_slots: sequences decoded together. kv_tokens: budget of cached tokens over all of them;
    one that needs more is decoded alone. eos_id: the end token. exempt_ids: never banned by the
    windowed n-gram rule. make_cache: (num_slots, max_tokens_per_slot) -> cache, for a decoder
    that brings its own. max_context: the longest that a sequence may become, where that is less
    than the model allows: a device sets aside memory for that many in each slot. remedy: what a
    person may do where memory lacks, besides fewer sequences, as the rest of a sentence: what
    limits it is known where the generator is made.

    Raises: EngineError when the cache itself does not fit in memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: DecodeConfig,
        *,
        eos_id: int,
        exempt_ids: Iterable[int] = (),
        num_slots: int,
        kv_tokens: int,
        tuning: Tuning | None = None,
        make_cache: MakeCache | None = None,
        max_context: int = 0,
        remedy: str = "free some memory (on a card: use --device cpu)",
    ) -> None:
        if config.draft not in DRAFT_MODES:
            raise ValueError(f"draft is one of {', '.join(DRAFT_MODES)}, not {config.draft!r}")
        self._tuning = tuning = tuning or Tuning()
        self._decoder = decoder
        self._config = config
        self._eos_id, self._exempt_ids = eos_id, frozenset(exempt_ids)
        self._num_slots, self._remedy = num_slots, remedy
        # Whatever the budget: it may delay a text and never shorten it.
        self._context = min(decoder.config.max_positions, max_context or sys.maxsize)
        self._max_cached = self._context + tuning.most_fed  # guesses may reach past the end
        self._lookahead = 1 if config.draft == "off" else 1 + tuning.max_guess
        self._scheduler = Scheduler(
            num_slots,
            kv_tokens,
            expected_new=tuning.expected_new,
            prefill_tokens=tuning.prefill_tokens,
            prefill_chunk=tuning.prefill_chunk,
            admit_together=tuning.admit_together,
            admit_patience=tuning.admit_patience,
        )
        self._cache = self._allocate(make_cache or _kv_cache_for(decoder))
        self._prompts = PromptFeeder(decoder, self._cache, tuning.prefill_together)
        self._runner = StepRunner(
            decoder,
            self._cache,
            scratch_slot=num_slots,
            batch_buckets=tuning.batch_buckets,
            feed_buckets=tuning.feed_buckets,
            fixed=self._fixed_step() if tuning.fixed_steps else None,
        )
        self._tracks: dict[int, Track] = {}  # by arrival
        self._in_flight = InFlight()
        self._costs = StepCosts(tuning.step_costs)
        self._num_added = 0
        self._done: list[Finished] = []
        self.statistics = Statistics()

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot."""
        return len(self._scheduler.running)

    @property
    def has_work(self) -> bool:
        return bool(self._tracks or self._done)

    def add(
        self,
        key: Hashable,
        prompt_embeddings_TD: Tensor,
        prompt_ids: Sequence[int],
        draft: Sequence[int] | None = None,
        *,
        max_new_tokens: int = 0,
        config: DecodeConfig | None = None,
    ) -> None:
        """Queue a sequence.

        prompt_embeddings: [T, D], visual tokens in place. prompt_ids: [T], for the rule over the
        prompt. draft: token ids likely to be written, in order (a text layer), or None.
        max_new_tokens: a limit for this one, 0 for the config's. config: rules for this one,
        None for the generator's; whether drafts are tried stays the generator's to say.

        Raises: PageFault too_large when the prompt fills the model's context.
        """
        num_prompt = int(prompt_embeddings_TD.shape[0])
        room = self._room_after(num_prompt)
        config = replace(config or self._config, draft=self._config.draft)
        max_new = min(max_new_tokens or room, config.max_new_tokens or room, room)
        running = Running(key, self._num_added, num_prompt, max_new)
        track = Track(running, self._policy(config), prompt_embeddings_TD, prompt_ids, draft)
        self._num_added += 1
        self._tracks[running.arrival] = track
        self._scheduler.add(running)

    @torch.inference_mode()
    def step(self) -> list[Finished]:
        """Feed due prompts and decode one step for all who write. Returns who ended.

        Raises: EngineError when one sequence alone does not fit in memory.
        """
        plan = self._scheduler.schedule(self._lookahead)
        self._start_over(plan.preempted)
        if lack := self._follow(plan):
            self._shrink(lack)
        self._free_slots()
        done, self._done = self._done, []
        return done

    def _follow(self, plan: Plan) -> Exception | None:
        """Feed and decode. Returns what failed for lack of memory, without its traceback: that
        would hold the memory it had."""
        try:
            self._prefill(plan.prefills)
            if plan.decodes:
                self._decode([self._tracks[running.arrival] for running in plan.decodes])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)
        return None

    def _prefill(self, chunks: Sequence[Chunk]) -> None:
        work = [(chunk, self._tracks[chunk.sequence.arrival]) for chunk in chunks]
        for chunk, track, choice in self._prompts.feed(work):
            track.running.num_cached = chunk.stop
            self.statistics.prefill_tokens += chunk.stop - chunk.start
            if choice is not None:
                track.running.state = State.DECODE
                self._take(track, choice)

    def _decode(self, tracks: Sequence[Track]) -> None:
        if self._tuning.overlap and self._start_next(tracks):
            return
        self._read_in_flight()
        left = [track for track in tracks if track.running.arrival in self._tracks]
        if left:
            self._decode_and_read(left)

    def _start_next(self, tracks: Sequence[Track]) -> bool:
        """Start a step, then read the one before it. False, and nothing done, where there is no
        step to start without knowing what that one chose."""
        if self._may_draft(len(tracks)):
            return False
        # The host knows without reading who will have ended by length.
        going = [track for track in tracks if track.num_left > (track in self._in_flight)]
        rows = [
            track.row_unread() if track in self._in_flight else track.row(Guess([]))
            for track in going
        ]
        started = self._runner.start(rows) if rows else None
        if started is None:
            return False
        self._count_step(len(rows))
        self._read_in_flight(InFlight(started, going))
        return True

    def _read_in_flight(self, following: InFlight | None = None) -> None:
        """Write what the step under way chose; `following` was started after it."""
        step, self._in_flight = self._in_flight, following or InFlight()
        for track, choice in step.land():
            track.running.num_cached += 1
            self._take(track, choice)

    def _decode_and_read(self, tracks: Sequence[Track]) -> None:
        guesses = self._guesses(tracks)
        rows = [track.row(guess) for track, guess in zip(tracks, guesses, strict=True)]
        started = time.perf_counter()
        chosen = self._runner.run(rows)
        num_fed = len(rows) * max(len(row.ids) for row in rows)
        self._costs.report(num_fed, time.perf_counter() - started)
        self._count_step(len(rows))
        for track, guess, choices in zip(tracks, guesses, chosen, strict=True):
            self._accept(track, guess, choices)

    def _count_step(self, num_rows: int) -> None:
        self.statistics.decode_steps += 1
        self.statistics.decode_rows += num_rows

    def _may_draft(self, num_sequences: int) -> bool:
        draft = self._config.draft
        is_crowded = draft == "auto" and num_sequences > self._tuning.draft_batch_limit
        return draft != "off" and not is_crowded

    def _guesses(self, tracks: Sequence[Track]) -> list[Guess]:
        # All rows are fed as many tokens as the longest guess, and no position exists past the
        # model's context.
        last = self._decoder.config.max_positions - self._tuning.most_fed
        is_near_end = any(track.running.num_cached > last for track in tracks)
        if is_near_end or not self._may_draft(len(tracks)):
            return [Guess([]) for _ in tracks]
        guesses = [track.guess() for track in tracks]
        if self._config.draft == "auto":
            feed = best_feed(guesses, self._costs.table())
            guesses = [guess.cut(feed - 1) for guess in guesses]
        return guesses

    def _accept(self, track: Track, guess: Guess, choices: Sequence[Choice]) -> None:
        """Write the choices up to and with the first that is not as guessed."""
        num_written = 0
        is_over = False
        for choice, guessed in zip(choices, [*guess.token_ids, None], strict=True):
            num_written += 1
            is_over = self._take(track, choice)
            if is_over or choice.token != guessed:
                break
        if guess.token_ids:
            track.report(guess, num_written - 1)
            self.statistics.drafted += len(guess.token_ids)
            self.statistics.accepted += num_written - 1
        kept = track.running.num_cached + num_written
        if not all(choice.is_finite for choice in choices[num_written:]):
            self._cache.scrub(track.running.slot, kept)
        elif not is_over:
            self._cache.truncate(track.running.slot, kept)
        if not is_over:
            track.running.num_cached = kept

    def _take(self, track: Track, choice: Choice) -> bool:
        """Write one token. True when the sequence ended with it, and is gone."""
        end = track.take(choice)
        self.statistics.new_tokens += not isinstance(end, PageError)
        if end:
            self._done.append(track.finished(end))
            self._drop_in_flight(track.running.arrival)
            if isinstance(end, PageError):
                self._cache.scrub(track.running.slot)
            self._scheduler.finish(track.running)
            del self._tracks[track.running.arrival]
        return end is not None

    def _start_over(self, sent_back: Sequence[Running]) -> None:
        for running in sent_back:
            self._tracks[running.arrival].start_over()
            self._drop_in_flight(running.arrival)
        self.statistics.preemptions += len(sent_back)

    def _free_slots(self) -> None:
        """What no sequence holds any more takes no memory."""
        held = {running.slot for running in self._scheduler.running}
        for slot, length in enumerate(self._cache.lengths):
            if length and slot not in held:
                self._cache.free(slot)

    def _drop_in_flight(self, arrival: int) -> None:
        slot = self._in_flight.drop(arrival)
        if slot is not None:
            # Nobody will look whether that token's keys and values are finite.
            self._cache.scrub(slot, self._cache.lengths[slot] - 1)

    def _shrink(self, error: Exception) -> None:
        """Out of memory: take the step back, go on with fewer."""
        if self.num_running <= 1:
            raise self._too_big("one sequence alone") from error
        self.statistics.out_of_memory += 1
        self._read_in_flight()
        for running in self._scheduler.running:
            if self._cache.lengths[running.slot] > running.num_cached:
                self._cache.truncate(running.slot, running.num_cached)
        if self.num_running > 1:  # as long as no one has ended with what was just read
            num_running, budget = self.num_running, self._scheduler.kv_tokens
            self._start_over(self._scheduler.shrink())
            logger.warning(
                "no memory for %d pages together: up to %d tokens at once instead of %d, "
                "and again more after a while; a lower --batch-size needs less",
                num_running, self._scheduler.kv_tokens, budget,
            )  # fmt: skip
        empty_cache()

    def _fixed_step(self) -> FixedStep | None:
        rule = self._policy(self._config).ngram
        if not FixedStep.supports(rule):
            return None
        decoder: Any = self._decoder
        return FixedStep(
            decoder,
            self._cache,
            rule,
            scratch_slot=self._num_slots,
            max_context=self._max_cached,
            batch_buckets=self._tuning.batch_buckets,
            use_graphs=self._cache.device.type == "cuda",
        )

    def _policy(self, config: DecodeConfig) -> Policy:
        ngram = NgramRule.of(config, self._exempt_ids)
        return Policy(config, ngram, self._eos_id, self._tuning.max_guess, self._tuning.loops)

    def _room_after(self, num_prompt: int) -> int:
        room = self._context - num_prompt
        if room > 0:
            return room
        raise PageFault(
            "too_large",
            f"the prompt has {num_prompt} tokens and the model's context is {self._context}: "
            "shorten --prompt-text.",
        )

    def _allocate(self, make_cache: MakeCache) -> Cache:
        try:
            # One slot more than sequences: padding decodes into it.
            return make_cache(self._num_slots + 1, self._max_cached)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            slots = "1 slot" if self._num_slots == 1 else f"{self._num_slots} slots"
            raise self._too_big(f"a KV cache of {slots}") from error

    def _too_big(self, what: str) -> EngineError:
        fewer = f"lower --batch-size (now {self._num_slots}), or " if self._num_slots > 1 else ""
        advice = fewer + self._remedy
        return EngineError(f"out of memory with {what}. {advice[:1].upper()}{advice[1:]}.")


def _kv_cache_for(decoder: Any) -> MakeCache:
    weight = decoder.embed.weight

    def make(num_slots: int, max_tokens: int) -> KVCache:
        return KVCache(
            decoder.config, num_slots, max_tokens, dtype=weight.dtype, device=weight.device
        )

    return make
