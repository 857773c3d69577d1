"""The stub's worker: a module of its own, since worker processes import it by name."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

from ocr2cli.pages import FinishReason, PageError, PageJob, PageResult, Status
from ocr2cli.pipeline.stage import Emit, Inbox


class StubReader:
    """Answers a page in a millisecond, unless the plan says otherwise."""

    def __init__(self, plan: dict[str, str]) -> None:
        self.plan = plan

    def run(self, inbox: Inbox, emit: Emit) -> None:
        while jobs := inbox.take(1, wait=True):
            emit(self.read(jobs[0]))

    def read(self, job: PageJob) -> PageResult:
        page = f"{job.key.document}:{job.key.page + 1}"
        deed = self.plan.get(page, self.plan.get("*", ""))
        result = PageResult(
            key=job.key,
            status=Status.OK,
            markdown=f"Text of {page}.",
            raw=f"Text of {page}.",
            finish_reason=FinishReason.STOP,
            confidence=0.9,
            pixels_sha256=hashlib.sha256(os.fsencode(page)).hexdigest(),
            seconds={"stub": 0.001},
        )
        return misbehave(deed, job, result)


def misbehave(deed: str, job: PageJob, result: PageResult) -> PageResult:
    kind, _, argument = deed.partition(" ")
    match kind:
        case "":
            return result
        case "slow":
            time.sleep(float(argument or 0.05))
        case "wait":  # in a folder, until somebody puts a file "open" there
            folder = Path(argument)
            (folder / f"{os.getpid()}").touch()
            while not (folder / "open").exists():
                time.sleep(0.02)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die-once" if job.attempt == 0:
            os._exit(3)
        case "kill-parent":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        case "hang":
            time.sleep(3600)
        case "allocate":
            return allocate(job, result)
        case "loop":
            return replace(result, status=Status.LOOP, finish_reason=FinishReason.LOOP)
        case "truncated":
            return replace(result, status=Status.TRUNCATED, finish_reason=FinishReason.LENGTH)
        case "unsure":
            return replace(result, confidence=0.1)
        case "nan":
            error = PageError("nan_logits", "the decoder's logits are not finite")
            return PageResult(job.key, Status.FAILED, error=error)
    return result


def allocate(job: PageJob, result: PageResult) -> PageResult:
    try:
        hoard = [bytearray(64_000_000) for _ in range(400)]
    except MemoryError:
        error = PageError("out_of_memory", "no memory for this page")
        return PageResult(job.key, Status.FAILED, error=error)
    return replace(result, markdown=f"held {len(hoard)}")
