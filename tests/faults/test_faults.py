"""faults.md at the level of whole runs: real processes, signals, disks and files; a stub model.

After each fault: a file is whole or absent, a rerun finishes the rest, the exit code tells, the
inputs are untouched.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stub_runs import Run, command, environment, write_pdf
from trees import leftovers, living

from ocr2cli.document import listing
from ocr2cli.errors import ExitCode
from ocr2cli.output.canonical import canonical_tree


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    return json.loads(done.stdout)


def whole(out: Path) -> dict[str, str]:
    """The tree, which must hold all six files: two empty trees are equal and prove nothing."""
    files = canonical_tree(out)
    assert len(files) == 6, sorted(files)
    return files


def test_a_run_and_a_rerun(inputs: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    first = run(inputs, "-o", out, "--json")
    assert first.returncode == ExitCode.OK and summary(first)["pages"] == 9
    before = canonical_tree(out)
    second = run(inputs, "-o", out, "--json")
    assert summary(second)["pages_resumed"] == 9 and canonical_tree(out) == before
    assert {"a.md", "a.jsonl", "b.md", "sub/c.md"} <= set(before)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_the_tree_is_the_same_with_any_number_of_workers(inputs, tmp_path, run, workers) -> None:
    run(inputs, "-o", tmp_path / "one", env={"STUB_WORKERS": "2"})
    run(inputs, "-o", tmp_path / "two", env={"STUB_WORKERS": workers})
    assert whole(tmp_path / "one") == whole(tmp_path / "two")


def test_the_tree_is_the_same_in_any_order_of_inputs(inputs, tmp_path, run) -> None:
    files = [inputs / "a.pdf", inputs / "b.pdf", inputs / "sub" / "c.pdf"]
    run(*files, "-o", tmp_path / "one")
    run(*reversed(files), "-o", tmp_path / "two")
    assert whole(tmp_path / "one") == whole(tmp_path / "two")


# Row 1
def test_a_page_that_kills_its_worker_fails_by_name_and_the_rest_is_read(
    inputs, tmp_path, run
) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--json", plan={"a:3": "die"})
    assert done.returncode == ExitCode.PAGES_FAILED
    (bad,) = summary(done)["failed_pages"]
    assert (bad["document"], bad["page"], bad["code"]) == ("a", 3, "worker_died")
    assert "Text of a:4." in (tmp_path / "out" / "a.md").read_text()


def test_a_worker_that_dies_once_costs_nothing(inputs, tmp_path, run) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--json", plan={"a:2": "die-once"})
    calm = run(inputs, "-o", tmp_path / "calm", "--json")
    assert done.returncode == calm.returncode == ExitCode.OK
    assert canonical_tree(tmp_path / "out") == whole(tmp_path / "calm")
    assert summary(done)["worker_deaths"] == 1 and summary(calm)["worker_deaths"] == 0
    assert "the stub worker exited with status 3; the " in done.stderr and not calm.stderr


# Row 2
def test_a_parent_killed_at_random_moments_ends_in_the_same_tree(inputs, tmp_path, run) -> None:
    """The short version of tests/soak/soak.py."""
    run(inputs, "-o", tmp_path / "calm")
    out = tmp_path / "out"
    dice = random.Random(11)
    for number in range(5):
        marker = f"FAULT_MARK={tmp_path.name}-{number}"
        name, _, value = marker.partition("=")
        process = subprocess.Popen(
            command(inputs, "-o", out), env=environment({"*": "slow 0.03"}, **{name: value}),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(dice.uniform(0.3, 2.5))
        process.kill()
        process.wait()
        for _ in range(100):
            if not living(marker):
                break
            time.sleep(0.05)
        assert not living(marker), "workers outlive their parent"
    assert run(inputs, "-o", out).returncode == ExitCode.OK
    assert canonical_tree(out) == whole(tmp_path / "calm")
    assert leftovers(out) == []


# Row 3
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, ExitCode.SIGTERM),
        (signal.SIGINT, ExitCode.SIGINT),
        (signal.SIGHUP, ExitCode.SIGHUP),
    ],
)
def test_a_signal_keeps_what_is_done_and_a_rerun_finishes(
    tmp_path, run, number, code
) -> None:
    write_pdf(tmp_path / "long.pdf", 60)
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(tmp_path / "long.pdf", "-o", out), env=environment({"*": "slow 0.1"}),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    journal = out / ".ocr2" / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3)
    process.send_signal(number)
    started = time.monotonic()
    assert process.stderr is not None
    words = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
    stopping = (
        "stopping: pages under way are being finished, for 20 s at most; "
        f"{words} to stop now\n"
    )
    assert process.stderr.readline() == stopping and time.monotonic() - started < 2
    assert process.wait(30) == code and time.monotonic() - started < 15
    assert process.stderr.read().endswith("\nstopped: run the same command again to go on\n")
    kept = journal.read_bytes().count(b"\n")
    assert 3 <= kept < 60
    assert not (out / "long.md").exists()
    again = run(tmp_path / "long.pdf", "-o", out, "--json")
    assert summary(again)["pages_resumed"] >= kept and again.returncode == ExitCode.OK


def test_a_run_that_a_signal_ended_says_so_wherever_it_says_how_it_ended(tmp_path) -> None:
    """The summary file, --json and the metrics said 0: the monitoring took it for a good run."""
    write_pdf(tmp_path / "long.pdf", 60)
    out, metrics = tmp_path / "out", tmp_path / "ocr2.prom"
    process = subprocess.Popen(
        command(tmp_path / "long.pdf", "-o", out, "--json", "--metrics-file", metrics),
        env=environment({"*": "slow 0.1"}), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    journal = out / ".ocr2" / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == ExitCode.SIGTERM
    assert json.loads(printed)["exit_code"] == ExitCode.SIGTERM
    kept = json.loads((out / ".ocr2" / "summary.json").read_text())
    assert kept["exit_code"] == ExitCode.SIGTERM
    assert f"\nocr2_exit_code {ExitCode.SIGTERM.value}\n" in metrics.read_text()


@pytest.mark.parametrize(
    ("num_documents", "last"),
    [
        (1, "stopped, after the last page"),
        (30, "stopped: run the same command again to go on"),
    ],
)
def test_a_signal_during_the_last_pages_asks_for_no_other_run(
    num_documents: int, last: str, tmp_path: Path, run
) -> None:
    """Nor is it taken for one where every document that was opened is finished, and others wait."""
    (tmp_path / "in").mkdir()
    for number in range(num_documents):
        write_pdf(tmp_path / "in" / f"{number:02}.pdf", 1)
    gate, out = tmp_path / "gate", tmp_path / "out"
    gate.mkdir()
    process = subprocess.Popen(
        command(tmp_path / "in", "-o", out), env=environment({"*": f"wait {gate}"}),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: any(gate.iterdir()))  # a worker has a page
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("stopping: ")
    (gate / "open").touch()
    _, told = process.communicate(timeout=60)
    assert process.returncode == ExitCode.SIGTERM and told.splitlines()[-1] == last
    again = run(tmp_path / "in", "-o", out, "--json")
    assert again.returncode == ExitCode.OK and len(list(out.glob("*.md"))) == num_documents
    assert (summary(again)["pages_resumed"] == num_documents) == ("after" in last)


def test_a_signal_is_heard_while_a_document_is_being_opened(inputs, tmp_path) -> None:
    """A file of 100 GB takes minutes to digest; the run was deaf until then, and kept nothing."""
    opener = """
import time
from ocr2cli.document import listing
real = listing.inspect
listing.inspect = lambda path, cfg: real(path, cfg) if "c.pdf" not in path else time.sleep(60)
listing.serve()
"""
    boot = f"from ocr2cli.document import listing; listing._BOOT = {opener!r}; "
    _, _, *arguments = command(inputs, "-o", tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-c", boot + "import stub; stub.main()", *arguments],
        env=environment(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    documents = [tmp_path / "out" / name for name in ("a.md", "b.md")]
    started = time.monotonic()
    wait_for(lambda: all(document.exists() for document in documents))
    assert time.monotonic() - started < listing.BASE_DEADLINE_S / 2, "c.pdf was waited for"
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(30) == ExitCode.SIGTERM and time.monotonic() - started < 8
    assert process.stderr and "Traceback" not in process.stderr.read()


def test_a_second_signal_stops_at_once(tmp_path) -> None:
    write_pdf(tmp_path / "long.pdf", 10)
    process = subprocess.Popen(
        command(tmp_path / "long.pdf", "-o", tmp_path / "out"),
        env=environment({"*": "hang"}), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: (tmp_path / "out" / ".ocr2" / "lock").exists())
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.wait(30) in (ExitCode.SIGTERM, -signal.SIGTERM)
    assert time.monotonic() - started < 8


# Row 4
def test_a_full_disk_is_one_message_and_a_rerun_with_room_finishes(inputs, tmp_path, run) -> None:
    out = tmp_path / "out"
    calm = run(inputs, "-o", tmp_path / "calm")

    def little_room() -> None:
        # SIGXFSZ would end the process without a word; a full disk gives an error instead.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))

    full = run(inputs, "-o", out, "--json", preexec_fn=little_room)
    assert full.returncode == summary(full)["exit_code"] == ExitCode.ENGINE, full.stderr
    assert str(out) in full.stderr and "Traceback" not in full.stderr
    assert run(inputs, "-o", out).returncode == calm.returncode
    assert canonical_tree(out) == whole(tmp_path / "calm") and leftovers(out) == []


def test_a_document_that_a_full_disk_has_no_room_for_is_counted_as_not_finished(
    tmp_path, run
) -> None:
    """All its pages were read, and the summary said that nothing was left to do."""
    source = write_pdf(tmp_path / "a.pdf", 1)

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    full = run(source, "-o", tmp_path / "out", "--json", "--format", "html", preexec_fn=little_room)
    told = summary(full)
    assert (full.returncode, told["pages"], told["documents_written"]) == (ExitCode.ENGINE, 1, 0)
    assert told["documents_incomplete"] == 1 and told["wall_seconds"] > 0


# Row 5
def test_out_that_is_a_file_is_refused_before_the_run(inputs, tmp_path, run) -> None:
    (tmp_path / "out").write_text("I am a file")
    done = run(inputs, "-o", tmp_path / "out")
    assert done.returncode == ExitCode.ENGINE and len(done.stderr.splitlines()) == 1


# Row 6
def test_a_page_that_eats_memory_is_a_page_error(inputs, tmp_path, run) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--json", "--worker-memory", "2G",
               plan={"b:1": "allocate"})  # fmt: skip
    (bad,) = summary(done)["failed_pages"]
    assert bad["code"] == "out_of_memory" and summary(done)["pages"] == 9


@pytest.mark.parametrize("memory", ["400M", "700M"])
def test_a_model_for_which_workers_have_no_memory_ends_the_run_in_a_line(
    memory, inputs, tmp_path
) -> None:
    """It was an import error of torch's, below a traceback where looking at it took memory too."""
    argv = ["run", inputs / "a.pdf", "-o", tmp_path / "out", "--pages", "1", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "ocr2cli", *map(str, argv), "--worker-memory", memory],
        env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == ExitCode.ENGINE and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert f"worker could not be loaded in 0.{memory[0]} GB" in line
    assert "Give it more with --worker-memory" in line


# Rows 7, 8 and 9
def test_a_hanging_page_is_killed_at_its_deadline(inputs, tmp_path, run) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--json", "--page-timeout", "2", "--retries", "0",
               plan={"sub/c:2": "hang"})  # fmt: skip
    (bad,) = summary(done)["failed_pages"]
    assert (bad["document"], bad["page"], bad["code"]) == ("sub/c", 2, "timeout")


@pytest.mark.parametrize("deed", ["loop", "truncated", "nan"])
def test_a_page_that_is_not_whole_is_never_ok(inputs, tmp_path, run, deed) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--json", plan={"a:1": deed})
    assert done.returncode == ExitCode.PAGES_FAILED
    counts = summary(done)["pages_by_status"]
    assert counts["ok"] == 8 and counts[deed if deed != "nan" else "failed"] == 1


# Row 10
def test_two_runs_on_one_folder(tmp_path, run) -> None:
    write_pdf(tmp_path / "long.pdf", 40)
    argv = command(tmp_path / "long.pdf", "-o", tmp_path / "out")
    first = subprocess.Popen(argv, env=environment({"*": "slow 0.1"}), stderr=subprocess.DEVNULL)
    lock = tmp_path / "out" / ".ocr2" / "lock"
    wait_for(lambda: lock.exists() and lock.read_bytes().strip() != b"")
    second = run(tmp_path / "long.pdf", "-o", tmp_path / "out")
    assert second.returncode == ExitCode.IN_USE and str(first.pid) in second.stderr
    first.kill()
    first.wait()
    assert run(tmp_path / "long.pdf", "-o", tmp_path / "out").returncode == ExitCode.OK


# Row 12
def test_an_input_that_changes_costs_its_document_only(inputs, tmp_path, run) -> None:
    out = tmp_path / "out"
    run(inputs, "-o", out)
    write_pdf(inputs / "b.pdf", 2, "new ")
    done = run(inputs, "-o", out, "--json")
    assert summary(done)["pages_resumed"] == 8 and summary(done)["pages"] == 10
    assert "<!-- page: 2 -->" in (out / "b.md").read_text()


def test_an_input_that_is_gone_is_an_error_for_it_alone(inputs, tmp_path, run) -> None:
    done = run(inputs, inputs / "gone.pdf", "-o", tmp_path / "out", "--json")
    assert done.returncode == ExitCode.PAGES_FAILED
    assert [bad["document"] for bad in summary(done)["failed_pages"]] == ["gone"]


def test_nothing_to_read_at_all_is_exit_3(tmp_path, run) -> None:
    assert run(tmp_path / "gone.pdf", "-o", tmp_path / "out").returncode == ExitCode.INPUT


# Row 14
def test_hostile_names_stay_inside_out_and_on_one_line(tmp_path, run) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"new\nline.pdf", b"\x1b[31mred.pdf", b"latin-\xe9.pdf", b"-x.pdf", b"a b.pdf",
             b"y" * 251 + b".pdf"]  # fmt: skip
    for name in names:
        path = os.path.join(os.fsencode(folder), name)
        write_pdf(tmp_path / "plain.pdf", 1).rename(os.fsdecode(path))
    done = run(folder, "-o", tmp_path / "out", "-v", "--json", plan={"*": "loop"})
    assert summary(done)["pages"] == len(names)
    assert "\x1b" not in done.stderr
    assert len(list((tmp_path / "out").glob("*.md"))) == len(names)


# Row 16
def test_things_that_are_no_files_are_errors_within_a_second(tmp_path, run) -> None:
    (tmp_path / "folder.pdf").mkdir()
    os.mkfifo(tmp_path / "pipe.pdf")
    (tmp_path / "dangling.pdf").symlink_to(tmp_path / "nowhere")
    write_pdf(tmp_path / "good.pdf", 1)
    paths = [tmp_path / name for name in ("pipe.pdf", "dangling.pdf", "good.pdf", "folder.pdf")]
    done = run(*paths, "/dev/zero", "-o", tmp_path / "out", "--json", timeout=60)
    bad = {row["document"] for row in summary(done)["failed_pages"]}
    assert {"pipe", "dangling"} <= {name.rpartition("/")[2] for name in bad}
    assert summary(done)["pages_by_status"]["ok"] == 1


# Row 18
def test_a_password_is_neither_in_the_output_nor_in_the_log(tmp_path, run) -> None:
    import pymupdf

    pdf = pymupdf.open()
    pdf.new_page().insert_text((72, 72), "secret page")
    pdf.save(tmp_path / "locked.pdf", encryption=pymupdf.PDF_ENCRYPT_AES_256, user_pw="hunter2")
    none = run(tmp_path / "locked.pdf", "-o", tmp_path / "o1", "--json")
    assert summary(none)["failed_pages"][0]["code"] == "encrypted"
    (tmp_path / "word").write_text("hunter2\n")
    right = run(tmp_path / "locked.pdf", "-o", tmp_path / "o2", "-vv", "--log-format", "json",
                "--password-file", tmp_path / "word")  # fmt: skip
    assert right.returncode == ExitCode.OK
    wrong = run(tmp_path / "locked.pdf", "-o", tmp_path / "o3", "--password", "swordfish")
    assert wrong.returncode == ExitCode.INPUT and len(wrong.stderr.splitlines()) <= 3
    everything = "".join(
        path.read_text(errors="replace")
        for out in ("o1", "o2", "o3") for path in (tmp_path / out).rglob("*") if path.is_file()
    )  # fmt: skip
    for text in (everything, right.stderr, wrong.stderr, right.stdout):
        assert "hunter2" not in text and "swordfish" not in text


# Row 19
@pytest.mark.parametrize(
    "shell",
    [
        "env -i PATH=$PATH PYTHONPATH=$PYTHONPATH {}",
        "env -u HOME LANG=C LC_ALL=C {}",
        "HOME=/nonexistent {} < /dev/null",
        "{} <&-",
        "{} --json | head -c 1 > /dev/null",
    ],
)
def test_bare_surroundings_are_enough(inputs, tmp_path, shell) -> None:
    line = shell.format(shlex.join(command(inputs, "-o", tmp_path / "out")))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line], env=environment(), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode in (ExitCode.OK, 141), done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "a.md").exists()


def test_progress_that_nobody_reads_does_not_end_the_run(inputs, tmp_path) -> None:
    """The run ended with its first line of progress, and said that all was well."""
    boot = "from ocr2cli.cli import progress; progress._LINE_EVERY_S = 0; import stub; stub.main()"
    _, _, *arguments = command(inputs, "-o", tmp_path / "out", "--json")
    line = shlex.join([sys.executable, "-c", boot, *arguments])
    done = subprocess.run(
        ["bash", "-c", f"{line} 2>&1 >{tmp_path}/summary.json | true; exit ${{PIPESTATUS[0]}}"],
        env=environment({"a:2": "loop", "*": "slow 0.05"}), timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.PAGES_FAILED
    assert json.loads((tmp_path / "summary.json").read_text())["pages"] == 9


def test_a_cron_run_is_silent_when_all_is_well_and_short_when_not(inputs, tmp_path, run) -> None:
    good = run(inputs, "-o", tmp_path / "out", "-q")
    assert (good.stdout, good.stderr) == ("", "")
    bad = run(inputs, "-o", tmp_path / "bad", "-q", plan={"a:2": "loop"})
    assert 1 <= len(bad.stderr.splitlines()) <= 5 and "a page 2" in bad.stderr


def test_json_logs_are_one_object_a_line(inputs, tmp_path, run) -> None:
    done = run(inputs, "-o", tmp_path / "out", "-vv", "--log-format", "json", "--json",
               plan={"a:2": "die-once"})  # fmt: skip
    for line in done.stderr.splitlines()[:-1]:
        json.loads(line)


def test_metrics_and_summary_files_are_always_written(inputs, tmp_path, run) -> None:
    metrics = tmp_path / "ocr2.prom"
    run(inputs, "-o", tmp_path / "out", "--metrics-file", metrics, plan={"a:2": "loop"})
    text = metrics.read_text()
    assert 'ocr2_pages_total{status="loop"} 1' in text and "ocr2_run_finished 1" in text
    assert json.loads((tmp_path / "out" / ".ocr2" / "summary.json").read_text())["exit_code"] == 5


def test_failed_pages_are_kept_until_they_are_asked_for(inputs, tmp_path, run) -> None:
    out = tmp_path / "out"
    run(inputs, "-o", out, plan={"a:2": "loop"})
    kept = run(inputs, "-o", out, "--json")
    assert kept.returncode == ExitCode.PAGES_FAILED and summary(kept)["pages_resumed"] == 9
    retried = run(inputs, "-o", out, "--retry-failed", "--json")
    assert retried.returncode == ExitCode.OK and summary(retried)["pages_resumed"] == 8


def test_unsure_pages_are_listed_for_review(inputs, tmp_path, run) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--json", "--min-confidence", "0.5",
               plan={"sub/c:3": "unsure"})  # fmt: skip
    (page,) = summary(done)["low_confidence_pages"]
    assert (page["document"], page["page"]) == ("sub/c", 3) and done.returncode == ExitCode.OK


def test_fail_fast_stops_at_the_first_failure(tmp_path, run) -> None:
    write_pdf(tmp_path / "long.pdf", 50)
    done = run(tmp_path / "long.pdf", "-o", tmp_path / "out", "--fail-fast", "--json",
               plan={"long:1": "loop", "*": "slow 0.05"})  # fmt: skip
    assert done.returncode == ExitCode.PAGES_FAILED and summary(done)["pages"] < 40


def wait_for(is_true: Any, seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.02)):
        if is_true():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


def test_verbose_runs_say_more(inputs, tmp_path, run) -> None:
    """-v and -vv said nothing more."""
    usual = run(inputs, "-o", tmp_path / "usual").stderr
    once = run(inputs, "-o", tmp_path / "once", "-v").stderr
    assert "info: workers: 2 stub\n" in once and "info: sub/c: written, " in once
    assert "info: " not in usual and "debug: " not in usual + once
    twice = run(inputs, "-o", tmp_path / "twice", "-vv").stderr
    assert "info: workers: 2 stub\n" in twice
    assert re.search(r"^debug: a page 1: ok, \d+ new tokens", twice, re.MULTILINE)
    assert re.search(r"^debug: .*; .* \d+\.\d+ s$", twice, re.MULTILINE)


def test_verbose_runs_say_more_in_json_too(inputs, tmp_path, run) -> None:
    stderr = run(inputs, "-o", tmp_path, "-vv", "--log-format", "json").stderr
    rows = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    documents = {row["document"]: row["pages"] for row in rows if "pages" in row}
    assert sorted(documents) == ["a", "b", "sub/c"] and sum(documents.values()) == 9
    pages = [row for row in rows if "page" in row]
    assert len(pages) == 9
    assert all(row["status"] == "ok" and row["level"] == "debug" for row in pages)


def test_a_log_in_json_names_documents_as_their_files_are_named(tmp_path, run) -> None:
    names = ["n" * 240, "latin1-\udcff", "\u00e4"]
    data = write_pdf(tmp_path / "plain.pdf", 1).read_bytes()
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / f"{name}.pdf").write_bytes(data)
    # In the C locale without UTF-8 the name in hand has two lone surrogates for the accent.
    variables = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    stderr = run(tmp_path / "in", "-o", tmp_path / "out", "-vv", "--log-format", "json",
                 env=variables).stderr  # fmt: skip
    rows = [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]
    stems = {path.stem for path in (tmp_path / "out").glob("*.md")}
    assert len(stems) == 3 and names[0] not in stems
    assert {row["document"] for row in rows if "pages" in row} == stems
    assert {row["document"] for row in rows if "page" in row} == stems
