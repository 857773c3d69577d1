"""A decode step that was started and not read: which sequences are in it, and at which place.

Knows nothing about how a step is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ocr2cli.generate.fixed_step import Started
from ocr2cli.generate.greedy import Choice
from ocr2cli.generate.track import Track


class InFlight:
    """started: the step, one token for each of `tracks`. Empty: no step is under way.

    A sequence that ends or is sent back meanwhile is dropped: what the step writes into its slot
    lies behind the tokens that count, and before anything that the slot's next owner writes.
    """

    def __init__(self, started: Started | None = None, tracks: Sequence[Track] = ()) -> None:
        self._started = started
        self._tracks = {
            track.running.arrival: (place, track) for place, track in enumerate(tracks)
        }

    def __contains__(self, track: Track) -> bool:
        return track.running.arrival in self._tracks

    def drop(self, arrival: int) -> None:
        """Its token counts no more."""
        self._tracks.pop(arrival, None)

    def land(self) -> Iterator[tuple[Track, Choice]]:
        """Wait for the step; what it chose for those who are still in it."""
        if self._started and self._tracks:
            choices = self._started.choices()
            for place, track in self._tracks.values():
                yield track, choices[place]
