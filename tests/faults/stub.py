"""`ocr2 run` with a stub in the model's place: real processes, real files, no weights.

    python tests/faults/stub.py run INPUT... -o OUT [flags of ocr2 run]

STUB_PLAN (JSON) makes pages misbehave: {"letter:3": "die", "*": "slow"}. A page's text depends on
its document and number alone, so two trees can be compared byte by byte.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

from stub_worker import StubReader

from ocr2cli.cli import main as cli_main
from ocr2cli.cli import run as run_module
from ocr2cli.pipeline.stage import Stage


def stub_stages(cfg: Any) -> list[Stage]:
    plan = json.loads(os.environ.get("STUB_PLAN", "{}"))
    return [
        Stage(
            "stub",
            partial(StubReader, plan),
            num_workers=int(os.environ.get("STUB_WORKERS", "2")),
            credit=3,
            timeout_s=cfg.page_timeout,
            recycle_after=cfg.recycle_after,
            memory_limit_bytes=cfg.worker_memory,
        )
    ]


def main() -> None:
    real = run_module.execute
    run_module.execute = lambda cfg, **how: real(cfg, **how, stages=stub_stages(cfg))
    cli_main.main(sys.argv[1:])


if __name__ == "__main__":
    main()
