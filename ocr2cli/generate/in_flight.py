"""A decode step that was started and not read: which sequences are in it, and at which place.

Knows nothing about how a step is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ocr2cli.generate.fixed_step import Started
from ocr2cli.generate.greedy import Choice
from ocr2cli.generate.track import Track


class InFlight:
    """started: the step, one token for each of `tracks`. Empty: no step is under way."""

    def __init__(self, started: Started | None = None, tracks: Sequence[Track] = ()) -> None:
        self._started = started
        self._tracks = {
            track.running.arrival: (place, track, track.running.slot)
            for place, track in enumerate(tracks)
        }

    def __contains__(self, track: Track) -> bool:
        return track.running.arrival in self._tracks

    def drop(self, arrival: int) -> int | None:
        """The sequence ended or was sent back: its token counts no more. Returns the slot that the
        step writes into all the same, or None if it was not in it."""
        _, _, slot = self._tracks.pop(arrival, (0, None, None))
        return slot

    def land(self) -> Iterator[tuple[Track, Choice]]:
        """Wait for the step; what it chose for those who are still in it."""
        if self._started and self._tracks:
            choices = self._started.choices()
            for place, track, _ in self._tracks.values():
                yield track, choices[place]
