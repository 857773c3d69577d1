"""The parent is signalled, killed or started with closed streams: what its workers do then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import children_of, wait_until_gone
from toys import Recipe, jobs, line, stage

from ocr2cli.pages import PageResult
from ocr2cli.pipeline import local
from ocr2cli.pipeline.channel import Kind
from ocr2cli.pipeline.ledger import Ticket
from ocr2cli.pipeline.process import WorkerProcess
from ocr2cli.pipeline.stop import SIGNALS, stop_on_signals

HERE = Path(__file__).parent
REPO = HERE.parents[1]

SCRIPT = """
import sys
sys.path[:0] = [{repo!r}, {here!r}]
from pathlib import Path
import toys
from ocr2cli.pipeline import local
from ocr2cli.pipeline.options import RunnerOptions, RunStatus
from ocr2cli.pipeline.stop import stop_on_signals

# No main guard on purpose: a worker must not run its caller's script again.
print("start", flush=True)
status = RunStatus()
with stop_on_signals() as stop:
    options = RunnerOptions(stop=stop, status=status, drain_s={drain_s})
    slow = toys.Recipe("a", sleep_s={sleep_s}, misdeeds={misdeeds})
    stages = [toys.stage(slow, credit=2),
              toys.stage(toys.Recipe("b", is_last=True), credit=2, num_workers=2)]
    for result in local.run(stages, toys.jobs(100000), options=options):
        print(result.key.page, flush=True)
print("interrupted", status.is_interrupted, flush=True)
sys.exit(stop.exit_code)
"""


def start_script(
    sleep_s: float, drain_s: float = 5.0, misdeeds: tuple[tuple[int, str], ...] = ()
) -> subprocess.Popen[str]:
    text = SCRIPT.format(
        repo=str(REPO), here=str(HERE), sleep_s=sleep_s, drain_s=drain_s, misdeeds=misdeeds
    )
    process = subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout and process.stdout.readline() == "start\n"
    assert process.stdout.readline() == "0\n"
    return process


def test_killing_the_parent_leaves_no_orphans() -> None:
    process = start_script(0.01)
    workers = children_of(process.pid)
    assert len(workers) == 3
    assert {os.readlink(f"/proc/{pid}/fd/0") for pid in workers} == {"/dev/null"}
    process.kill()
    process.communicate()
    assert wait_until_gone(workers, 5.0) == []


def test_the_end_of_the_pipe_is_enough_to_end_a_worker() -> None:
    """PR_SET_PDEATHSIG is Linux's own; here the parent lives on and only hangs up."""
    worker = WorkerProcess(stage(Recipe("a", misdeeds=((0, "hang"),))), 0, 0)
    worker.flush()
    (job,) = jobs(1)
    worker.send(Ticket(1, job))
    worker.flush()
    deadline = time.monotonic() + 10
    while not any(frame.kind is Kind.TAKEN for frame in worker.read()[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(worker.down_fd)
    gone = wait_until_gone([worker.pid], 5.0) == []
    worker.kill()
    assert gone


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_worker_that_is_just_starting_leaves_signals_to_its_parent(
    signum: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C reaches the whole group, and importing takes a while."""
    for wait_s in (0.0, 0.01, 0.03, 0.06):
        worker = WorkerProcess(stage(Recipe("a")), 0, 0)
        worker.flush()
        time.sleep(wait_s)
        os.kill(worker.pid, signum)
        deadline = time.monotonic() + 10
        while not any(frame.kind is Kind.READY for frame in worker.read()[0]):
            assert time.monotonic() < deadline and not worker.has_exited(), f"died after {wait_s} s"
            time.sleep(0.01)
        worker.kill()
        worker.bury()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_to_the_whole_group_drains(signum: signal.Signals, code: int) -> None:
    process = start_script(0.05)
    workers = children_of(process.pid)
    started = time.monotonic()
    os.killpg(process.pid, signum)
    for worker in workers:
        os.kill(worker, signum)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - started < 9
    assert process.returncode == code, err
    lines = out.split()
    assert lines[-2:] == ["interrupted", "True"] and len(lines) > 2, "pages under way were lost"
    assert err == "" and wait_until_gone(workers, 1.0) == []


def test_a_second_signal_stops_a_slow_drain() -> None:
    process = start_script(0, drain_s=60, misdeeds=((1, "hang"),))
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143 and time.monotonic() - started < 20


@pytest.mark.parametrize("before", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_terminal_that_closes_is_one_request_and_none_under_nohup(
    before: signal.Handlers,
) -> None:
    """The shell passes the signal on, and the kernel sends it, too."""
    own = signal.signal(signal.SIGHUP, before)
    try:
        with stop_on_signals() as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
            ended = (0, 0) if before is signal.SIG_IGN else (1, 129)
            assert (stop.count, stop.exit_code) == ended
        assert signal.getsignal(signal.SIGHUP) is before
    finally:
        signal.signal(signal.SIGHUP, own)


def test_the_first_signal_is_told_of_and_names_the_exit_code_and_a_third_is_not_caught() -> None:
    before, told = [signal.getsignal(each) for each in SIGNALS], []
    with stop_on_signals(told.append) as stop:
        assert (stop.count, stop.exit_code) == (0, 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.count, stop.exit_code, told) == (2, 130, [signal.SIGINT])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_drain_ends_in_time_though_a_page_hangs() -> None:
    process = start_script(0, drain_s=0.5, misdeeds=((1, "hang"),))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err == "" and "interrupted True" in out


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-", "2>&-"])
def test_closed_standard_streams_do_no_harm(closed: str, tmp_path: Path) -> None:
    """Their descriptors would otherwise be reused for pipes and for the journal."""
    code = f"""
import os, sys
sys.path[:0] = [{str(REPO)!r}, {str(HERE)!r}]
from pathlib import Path
import toys
from ocr2cli.pipeline import local
from ocr2cli.pipeline.journal import Journal
from ocr2cli.pipeline.lock import OutputLock
out = Path({str(tmp_path / "out")!r})
with OutputLock(out):
    journal = Journal.open(out, "f")
    for result in local.run(toys.line(), toys.jobs(3)):
        journal.record(result, "p")
        for fd in (1, 2):
            try:
                os.write(fd, b"stray")
            except OSError:
                pass
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    subprocess.run(f"{sys.executable} {script} {closed}", shell=True, check=True, timeout=60)
    lines = (tmp_path / "out" / ".ocr2" / "journal.jsonl").read_bytes().splitlines()
    assert len(lines) == 3 and all(line.startswith(b'{"crc"') for line in lines)


def test_a_plain_keyboard_interrupt_kills_the_workers() -> None:
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        for _ in local.run(line(Recipe("a", is_last=True)), jobs(50)):
            seen = children_of(os.getpid())
            raise KeyboardInterrupt
    assert seen and wait_until_gone(seen, 1.0) == []


def test_a_run_may_be_made_from_a_thread() -> None:
    results: list[PageResult] = []
    thread = threading.Thread(target=lambda: results.extend(local.run(line(), jobs(5))))
    thread.start()
    thread.join()
    assert len(results) == 5
