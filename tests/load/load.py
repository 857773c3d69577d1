"""A bounded load on `ocr2 serve`: one request at a time, many at once, more than it takes.

    python tests/load/load.py [--pages 24] [--at-once 8] [--queue 16] [--tokens 60] [--model nano]

Starts its own server on the loopback. Exit code 1 when an answer was lost, belonged to another
page, or differed from the page read alone, or when an overload was not refused with Retry-After.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from PIL import Image, ImageDraw

REPO = Path(__file__).parents[2]
WORDS = (
    "blue", "rope", "brass", "lamp", "salt", "sack", "new", "ledger", "tea", "sugar", "boat",
    "net", "road", "mill", "river", "bridge",
)  # fmt: skip
GIVE_UP_S = 600.0


@dataclass(slots=True)
class Phase:
    """One way of asking. seconds: wall time; latencies: of the answered requests."""

    name: str
    num_requests: int = 0
    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def row(self) -> dict[str, object]:
        ordered = sorted(self.latencies)
        at = lambda share: round(ordered[int(share * (len(ordered) - 1))], 2) if ordered else None  # noqa: E731
        return {
            "phase": self.name, "requests": self.num_requests, "seconds": round(self.seconds, 1),
            "pages_per_s": round(self.statuses[200] / self.seconds, 2), "p50_s": at(0.5),
            "p95_s": at(0.95), "statuses": dict(self.statuses), "faults": self.faults,
        }  # fmt: skip


def main() -> int:
    options = parse_arguments()
    pages = [draw_page(seed) for seed in range(options.pages)]
    num_overload = 4 * options.queue
    with serving(options) as url, httpx.Client(base_url=url, timeout=GIVE_UP_S) as client:
        ask(client, pages[0])  # the workers are loaded when this is answered
        print("loaded", flush=True)
        alone, texts = one_by_one(client, pages)
        together = at_once(client, pages, texts, options.at_once)
        refused = overload(client, pages, texts, num_overload)
        patient = overload(client, pages, texts, num_overload, is_patient=True)
    phases = [alone, together, refused, patient]
    for phase in phases:
        print(json.dumps(phase.row()))
    ratio = alone.seconds / together.seconds
    print(f"{options.at_once} at once: {ratio:.2f} times the pages of one at a time")
    return int(any(phase.faults for phase in phases))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Put a bounded load on ocr2 serve.")
    parser.add_argument("--pages", type=int, default=24)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--queue", type=int, default=16, help="pages the server takes")
    parser.add_argument("--tokens", type=int, default=60, help="new tokens of a page at most")
    parser.add_argument("--model", default="nano")
    return parser.parse_args()


class serving:
    """The server's address while the block runs."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.argv = [
            sys.executable, "-u", "-m", "ocr2cli", "serve", "--port", "0", "--model", options.model,
            "--max-queue", str(options.queue), "--max-new-tokens", str(options.tokens),
            "--dtype", "f32",
        ]  # fmt: skip

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.argv, cwd=REPO, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()[-1]

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)


def draw_page(seed: int) -> bytes:
    """A page of one view with two lines of large print, no two alike."""
    rng = random.Random(seed)
    image = Image.new("RGB", (700, 300), "white")
    draw = ImageDraw.Draw(image)
    for line in range(2):
        text = " ".join(rng.sample(WORDS, 3)) + f" {seed}"
        draw.text((40, 60 + 90 * line), text, fill="black", font_size=48)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ask(client: httpx.Client, page: bytes) -> httpx.Response:
    return client.post("/v1/ocr?prompt=ocr&format=json", content=page)


def text_of(answer: httpx.Response) -> str:
    (row,) = answer.json()["pages"]
    return str(row["markdown"])


def timed(phase: Phase, request: Callable[[], httpx.Response]) -> httpx.Response:
    started = time.perf_counter()
    answer = request()
    phase.statuses[answer.status_code] += 1
    if answer.status_code == 200:
        phase.latencies.append(time.perf_counter() - started)
    return answer


def one_by_one(client: httpx.Client, pages: list[bytes]) -> tuple[Phase, list[str]]:
    phase = Phase("one at a time", len(pages))
    started = time.perf_counter()
    texts = [text_of(timed(phase, lambda page=page: ask(client, page))) for page in pages]
    phase.seconds = time.perf_counter() - started
    if len(set(texts)) < len(texts) // 2:
        phase.faults.append("the pages read alike: a mix-up would not show")
    return phase, texts


def at_once(client: httpx.Client, pages: list[bytes], texts: list[str], width: int) -> Phase:
    phase = Phase(f"{width} at once", len(pages))
    started = time.perf_counter()
    with ThreadPoolExecutor(width) as pool:
        answers = list(pool.map(lambda page: timed(phase, lambda: ask(client, page)), pages))
    phase.seconds = time.perf_counter() - started
    check(phase, answers, texts)
    return phase


def overload(
    client: httpx.Client,
    pages: list[bytes],
    texts: list[str],
    num_requests: int,
    *,
    is_patient: bool = False,
) -> Phase:
    """All requests in one moment; patient clients come back when they were told to."""
    phase = Phase("overload, come back as told" if is_patient else "overload", num_requests)

    def request(number: int) -> httpx.Response:
        until = time.monotonic() + GIVE_UP_S
        while True:
            answer = timed(phase, lambda: ask(client, pages[number % len(pages)]))
            if answer.status_code != 429:
                return answer
            wait = answer.headers.get("retry-after", "")
            if not wait.isdigit() or int(wait) < 1:
                phase.faults.append(f"429 with Retry-After {wait!r}")
            if not is_patient or time.monotonic() > until:
                return answer
            time.sleep(int(wait or 1) * random.uniform(1, 1.5))

    started = time.perf_counter()
    with ThreadPoolExecutor(num_requests) as pool:
        answers = list(pool.map(request, range(num_requests)))
    phase.seconds = time.perf_counter() - started
    if not is_patient and not phase.statuses[429]:
        phase.faults.append("nothing was refused")
    served = [(n, answer) for n, answer in enumerate(answers) if answer.status_code != 429]
    if is_patient and len(served) < num_requests:
        phase.faults.append(f"{num_requests - len(served)} were never let in")
    expected = [texts[number % len(texts)] for number, _ in served]
    check(phase, [answer for _, answer in served], expected)
    return phase


def check(phase: Phase, answers: list[httpx.Response], texts: list[str]) -> None:
    for answer, text in zip(answers, texts, strict=True):
        if answer.status_code != 200:
            phase.faults.append(f"status {answer.status_code}")
        elif text_of(answer) != text:
            phase.faults.append(f"{text_of(answer)!r} instead of {text!r}")


if __name__ == "__main__":
    os.environ.setdefault("NO_PROXY", "127.0.0.1,localhost")
    sys.exit(main())
