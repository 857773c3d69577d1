"""The recovery ladder for pages that loop: a fixed order of steps, none of them random.

The first steps need nothing but the visual tokens and run in the decoder; the later ones need the
page's pixels again and run as jobs of a second pass (`batch.py`). Knows nothing about processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ocr2cli.config import DecodeConfig


@dataclass(frozen=True, slots=True)
class Step:
    """name: written to the sidecar. view: which visual tokens the try reads."""

    name: str
    view: str = "all"  # all | global


# Order: what changes the page's reading least comes first.
STEPS = (
    Step("first"),
    Step("wider-ngram"),
    Step("global-view", view="global"),
)


def step_name(number: int) -> str:
    """Name of try `number`, counted from 0."""
    return STEPS[number].name if number < len(STEPS) else f"try-{number + 1}"


def decode_config_for(step: Step, cfg: DecodeConfig) -> DecodeConfig:
    """The settings of one step.

    wider-ngram: the rule looks back over the whole page and forbids shorter runs, which breaks
    loops whose period exceeds the usual window.
    """
    if step.name == "wider-ngram":
        return replace(cfg, dry=None, no_repeat_ngram=12, ngram_window=1_000)
    return cfg
