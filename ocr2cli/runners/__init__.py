"""The table of runners: name -> the module whose `run` reads, imported when asked for.

Those of this machine are in `pipeline/`, the one for many in this folder.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator

from ocr2cli.errors import UsageError, extra_hint
from ocr2cli.pages import PageResult

RUNNERS = {
    "local": "ocr2cli.pipeline.local",
    "inline": "ocr2cli.pipeline.inline",
    "ray": "ocr2cli.runners.ray",
}


def runner_named(name: str) -> Callable[..., Iterator[PageResult]]:
    """`run(stages, jobs, options=...)` of one of RUNNERS.

    Raises: UsageError for another name, and for ray where its package is not installed.
    """
    if name not in RUNNERS:
        raise UsageError(f"--runner {name}: unknown. Choose from {', '.join(RUNNERS)}")
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise UsageError(
            f"--runner ray needs the package Ray. {extra_hint('ray')}, or use --runner local"
        )
    run = importlib.import_module(RUNNERS[name]).run
    assert callable(run)
    return run  # type: ignore[no-any-return]
