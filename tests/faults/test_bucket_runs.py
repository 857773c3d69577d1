"""Runs that read from and write to an S3-compatible server (moto's), with the stub as model.

What holds for a folder holds for a bucket: a file is whole or absent, a rerun finishes the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stub import stub_stages
from stub_runs import Run, command, complaints, environment, write_pdf
from test_faults import summary, whole

from ocr2cli.batch import run_batch
from ocr2cli.config import RunConfig
from ocr2cli.errors import ExitCode, OutputError
from ocr2cli.output.bucket import Bucket, staging_folder
from ocr2cli.output.canonical import canonical_bytes
from ocr2cli.output.summary import Summary
from ocr2cli.output.writer import SUMMARY_PATH


class Store:
    """One bucket `paper` on a server of its own, and the environment that leads to it."""

    def __init__(self, endpoint: str) -> None:
        import boto3

        self.env = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "s3cret-word",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1",
            aws_access_key_id="key", aws_secret_access_key="s3cret-word",
        )  # fmt: skip

    def upload(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*.pdf")):
            name = f"{prefix}/{path.relative_to(folder)}"
            self.client.put_object(Bucket="paper", Key=name, Body=path.read_bytes())

    def objects(self, prefix: str) -> dict[str, bytes]:
        """Name below the prefix -> canonical bytes, of all but the run's own marker."""
        listed = self.client.list_objects_v2(Bucket="paper", Prefix=prefix + "/")
        found = {}
        for row in listed.get("Contents", []):
            name = row["Key"].removeprefix(prefix + "/")
            if not name.startswith(".ocr2/"):
                body = self.client.get_object(Bucket="paper", Key=row["Key"])["Body"].read()
                found[name] = canonical_bytes(name, body)
        return found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    import requests

    requests.post(f"{server}/moto-api/reset", timeout=10)
    store = Store(server)
    store.client.create_bucket(Bucket="paper")
    # The state of a run lies below the user's folder, which is a fresh one here.
    for name, value in {**store.env, "XDG_STATE_HOME": str(tmp_path / "state")}.items():
        monkeypatch.setenv(name, value)
    return store


def tree(out: Path) -> dict[str, bytes]:
    """What a run on this machine wrote, to be compared with a bucket."""
    whole(out)
    return {
        str(path.relative_to(out)): canonical_bytes(path.name, path.read_bytes())
        for path in out.rglob("*")
        if path.is_file() and ".ocr2" not in path.parts
    }


def test_a_bucket_holds_what_a_folder_would(
    inputs: Path, tmp_path: Path, run: Run, store: Store
) -> None:
    store.upload(inputs, "in")
    local = run(inputs, "-o", tmp_path / "local")
    done = run("s3://paper/in", "-o", "s3://paper/out/run1", "--json")
    assert local.returncode == done.returncode == ExitCode.OK, done.stderr
    assert summary(done)["pages"] == 9 and complaints(done.stderr) == ""
    there = store.objects("out/run1")
    here = tree(tmp_path / "local")
    assert set(there) == set(here)
    # The digest of the input's bytes is the same; its path is not written anywhere.
    assert there == here


def test_hostile_names_arrive_and_what_is_no_text_is_spelled_out(
    tmp_path: Path, run: Run, store: Store
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = ["a b#?&+%41*[x]{}.pdf", "version?versionId=1.pdf", "\u00e4\u0416.pdf", "n\new.pdf"]
    names.append("\udcff.pdf")
    data = write_pdf(tmp_path / "plain.pdf", 1).read_bytes()
    for name in names:
        (folder / name).write_bytes(data)
    done = run(folder, "-o", "s3://paper/out")
    assert done.returncode == ExitCode.OK, done.stderr
    spelled = [name.replace("\udcff", "\\xff").replace("\n", "\\n") for name in names]
    spelled[1] = "version\\x3fversionId=1.pdf"
    wanted = {name.removesuffix(".pdf") + ".md" for name in spelled}
    assert {name for name in store.objects("out") if name.endswith(".md")} == wanted


def test_a_name_too_long_for_the_store_is_its_documents_fault_alone(
    tmp_path: Path, run: Run, store: Store
) -> None:
    deep = tmp_path / "in" / "/".join(["x" * 190] * 6)
    deep.mkdir(parents=True)
    write_pdf(deep / "deep.pdf", 1)
    write_pdf(tmp_path / "in" / "b.pdf", 1)
    metrics = tmp_path / "ocr2.prom"
    done = run(tmp_path / "in", "-o", "s3://paper/out", "--json", "--metrics-file", metrics)
    assert done.returncode == ExitCode.PAGES_FAILED, done.stderr
    assert "\nocr2_exit_code 5\n" in metrics.read_text()
    (fault,) = summary(done)["document_errors"]
    assert fault["document"].endswith("/deep") and "1,024 bytes" in fault["message"]
    kept = (staging_folder("s3://paper/out", None) / SUMMARY_PATH).read_bytes()
    assert json.loads(kept) == summary(done)
    there = store.client.get_object(Bucket="paper", Key=f"out/{SUMMARY_PATH}")
    assert there["Body"].read() == kept
    assert set(store.objects("out")) == {"b.md", "b.jsonl"}


def test_a_rerun_uploads_only_what_is_missing(inputs: Path, run: Run, store: Store) -> None:
    run(inputs, "-o", "s3://paper/out")
    before = store.objects("out")
    stamps = {row["Key"]: row["LastModified"] for row in
              store.client.list_objects_v2(Bucket="paper")["Contents"]}  # fmt: skip
    store.client.delete_object(Bucket="paper", Key="out/b.md")
    store.client.put_object(Bucket="paper", Key="out/sub/c.md", Body=b"cut sh")
    time.sleep(1.1)  # the store keeps whole seconds
    again = run(inputs, "-o", "s3://paper/out", "--json", "-v")
    assert summary(again)["pages_resumed"] == 9 and "2 files uploaded" in again.stderr
    assert store.objects("out") == before
    now = store.client.head_object(Bucket="paper", Key="out/a.md")["LastModified"]
    assert now == stamps["out/a.md"]


def test_a_run_killed_at_random_moments_ends_in_the_same_bucket(
    inputs: Path, tmp_path: Path, run: Run, store: Store
) -> None:
    run(inputs, "-o", "s3://paper/calm", "--state", tmp_path / "calm")
    calm = store.objects("calm")
    words = command(inputs, "-o", "s3://paper/out", "--state", tmp_path / "s")
    parts, deadline = 0, time.monotonic() + 60
    while parts < 8 and time.monotonic() < deadline:
        going = subprocess.Popen(
            words, env=environment({"*": "slow 0.15"}), stderr=subprocess.DEVNULL
        )
        # Each kill comes two pages further on.
        while going.poll() is None and _num_parts(tmp_path / "s") < parts + 2:
            time.sleep(0.02)
        going.kill()
        going.wait()
        parts = _num_parts(tmp_path / "s")
        for name, data in store.objects("out").items():
            assert data == calm[name], f"{name} was not whole"
    assert run(*words[3:]).returncode == ExitCode.OK
    assert store.objects("out") == calm and len(calm) == 6


def _num_parts(state: Path) -> int:
    return len(list(state.glob(".ocr2/parts/*/*.json")))


def test_a_drain_uploads_what_is_finished(inputs: Path, tmp_path: Path, store: Store) -> None:
    going = subprocess.Popen(
        command(inputs, "-o", "s3://paper/out", "--state", tmp_path / "s"),
        env=environment({"sub/c:2": "slow 2", "sub/c:3": "slow 2"}), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while _num_parts(tmp_path / "s") < 7 and time.monotonic() < deadline:
        time.sleep(0.02)
    going.send_signal(signal.SIGTERM)
    assert going.wait(timeout=30) == 143
    assert {"a.md", "a.jsonl", "b.md", "b.jsonl"} <= set(store.objects("out"))


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("s3://no-such-bucket/x", "Make the bucket"),
        ("s3://paper/x", "Check the credentials"),
    ],
)
def test_a_store_that_refuses_is_one_line_before_any_page_is_read(
    inputs: Path, run: Run, store: Store, out: str, words: str, server: str
) -> None:
    import requests

    if "paper" in out:
        # From now on the server checks signatures; nobody of this key exists.
        requests.post(f"{server}/moto-api/reset-auth", data=b"0", timeout=10)
    try:
        done = run(inputs, "-o", out)
    finally:
        requests.post(f"{server}/moto-api/reset-auth", data=b"inf", timeout=10)
    assert done.returncode == ExitCode.ENGINE
    assert len(done.stderr.splitlines()) == 1 and words in done.stderr
    assert "s3cret-word" not in done.stderr


def test_inputs_of_an_absent_bucket_are_no_input(run: Run, store: Store, tmp_path: Path) -> None:
    done = run("s3://no-such-bucket/a.pdf", "-o", tmp_path / "out", "--json")
    assert done.returncode == ExitCode.INPUT
    (bad,) = summary(done)["failed_pages"]
    assert "s3://no-such-bucket/a.pdf cannot be read" in bad["message"]


def test_what_a_run_wrote_into_its_input_bucket_is_no_input(
    inputs: Path, run: Run, store: Store
) -> None:
    store.upload(inputs, "in")
    words = ("s3://paper/in", "-o", "s3://paper/in/out", "--format", "md,pdf", "--json")
    first, second = run(*words), run(*words)
    assert summary(first)["documents"] == summary(second)["documents"] == 3


def test_a_scheme_that_is_no_object_store_is_refused(inputs: Path, run: Run) -> None:
    done = run(inputs, "-o", "sftp://host/out")
    assert done.returncode == ExitCode.USAGE and "s3://" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_store_whose_package_is_missing_is_one_line(
    inputs: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "gcsfs.py").write_text("raise ImportError('not here')\n")
    path = f"{tmp_path}:{environment()['PYTHONPATH']}"
    done = run(inputs, "-o", "gs://bucket/out", env={"PYTHONPATH": path})
    assert done.returncode == ExitCode.USAGE and len(done.stderr.splitlines()) == 1
    assert "gs://bucket/out cannot be used" in done.stderr and "pip install gcsfs" in done.stderr


def test_a_state_folder_is_for_urls_only(inputs: Path, run: Run, tmp_path: Path) -> None:
    done = run(inputs, "-o", tmp_path / "out", "--state", tmp_path / "s")
    assert done.returncode == ExitCode.USAGE and "--state" in done.stderr


def test_a_file_url_is_a_folder(inputs: Path, run: Run, tmp_path: Path) -> None:
    done = run(inputs, "-o", (tmp_path / "a b").as_uri())
    assert done.returncode == ExitCode.OK and (tmp_path / "a b" / "a.md").is_file()


def test_each_url_has_a_state_folder_of_its_own_without_its_password() -> None:
    one, two = staging_folder("s3://b/x", None), staging_folder("s3://b/x-", None)
    assert one != two and one == staging_folder("s3://b/x/", None)
    assert "s3cret" not in str(staging_folder("s3://me:s3cret@b/x", None))
    assert staging_folder("s3://b/x", Path("/s")) == Path("/s")


# The uploader itself, with fsspec's file system in memory made to misbehave.


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    (tmp_path / "s" / "a.images").mkdir(parents=True)
    (tmp_path / "s" / "a.md").write_text("text")
    (tmp_path / "s" / "a.images" / "0001-1.png").write_bytes(b"figure")
    (tmp_path / "s" / "a.images" / "b.md").write_text("another document's")
    (tmp_path / "s" / "images" / "a").mkdir(parents=True)
    (tmp_path / "s" / "images" / "a" / "0_0.jpg").write_bytes(b"mmd's")
    return tmp_path / "s"


FILES = {"a.md": "1", "a.images/0001-1.png": "2"}
MMD_FILES = {"a.md": "1", "images/a/0_0.jpg": "2"}
PICTURES = ("a.images", "images/a")


class Flaky:
    """Fails the first `num_faults` puts, or stores half or other than what it is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_faults: int, kind: str) -> None:
        from fsspec.implementations.memory import MemoryFileSystem

        self.order: list[str] = []
        self.num_faults = num_faults
        real = MemoryFileSystem.put_file

        def put_file(system: Any, here: str, there: str, **how: Any) -> None:
            self.order.append(there)
            if self.num_faults > 0:
                self.num_faults -= 1
                if kind == "drop":
                    raise ConnectionResetError("the connection was reset")
                if kind == "refuse":
                    raise PermissionError("Access Denied")
                stored = Path(here).read_bytes()
                system.pipe_file(there, stored[:2] if kind == "cut" else stored[::-1])
                return
            real(system, here, there, **how)

        monkeypatch.setattr(MemoryFileSystem, "put_file", put_file)
        monkeypatch.setattr("ocr2cli.output.bucket._FIRST_PAUSE_S", 0.01)


@pytest.fixture
def memory() -> Iterator[Any]:
    import fsspec

    system = fsspec.filesystem("memory")
    yield system
    system.rm("/out", recursive=True)


@pytest.mark.parametrize("kind", ["drop", "cut", "garble"])
def test_a_fault_of_the_network_is_tried_again_and_the_object_is_whole(
    staged: Path, memory: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    flaky = Flaky(monkeypatch, 3, kind)
    bucket = Bucket("memory://out", staged)
    bucket.offer("a", "a", FILES, PICTURES)
    bucket.close()
    assert bucket.num_uploaded == 2 and len(flaky.order) == 5
    assert memory.cat_file("/out/a.md") == b"text"
    # Figures come before the text that shows them.
    assert flaky.order[-1].endswith("a.md")


def test_what_is_read_back_is_read_piece_by_piece_also_where_md5_is_no_secure_digest(
    staged: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that follows FIPS 140 refuses MD5 to who does not say that it keeps no secret."""
    real = hashlib.md5

    def md5(data: bytes = b"", *, usedforsecurity: bool = True) -> Any:
        if usedforsecurity:
            raise ValueError("[digital envelope routines] unsupported")
        return real(data, usedforsecurity=False)

    def cat_file(*_: object, **__: object) -> bytes:
        raise AssertionError("the whole object at once")

    monkeypatch.setattr(hashlib, "md5", md5)
    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    bucket = Bucket("memory://out", staged)
    bucket.offer("a", "a", FILES, PICTURES)
    bucket.close()
    assert bucket.num_uploaded == 2


def test_an_upload_that_is_refused_ends_the_run_at_once(
    staged: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flaky = Flaky(monkeypatch, 99, "refuse")
    bucket = Bucket("memory://out", staged)
    bucket.offer("a", "a", FILES)
    with pytest.raises(OutputError, match="finished pages are kept"):
        bucket.close()
    assert len(flaky.order) == 1


@pytest.fixture
def two_documents(tmp_path: Path) -> RunConfig:
    """A run of two files into the bucket in memory."""
    sources = [str(write_pdf(tmp_path / f"{name}.pdf", 1)) for name in "ab"]
    return RunConfig(tuple(sources), out=tmp_path / "s", out_url="memory://out", runner="inline")


def test_the_summary_is_uploaded_last(
    two_documents: RunConfig, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(memory).put_file
    monkeypatch.setattr(
        type(memory), "put_file", lambda *given, **how: (time.sleep(0.2), real(*given, **how))
    )
    run_batch(two_documents, stages=stub_stages(two_documents))
    there = sorted(memory.find("/out"), key=memory.created)
    assert len(there) == 6 and there[-1] == f"/out/{SUMMARY_PATH}"


def test_a_run_that_begins_takes_the_last_ones_summary_away(
    two_documents: RunConfig, memory: Any
) -> None:
    run_batch(two_documents, stages=stub_stages(two_documents))
    assert memory.exists(f"/out/{SUMMARY_PATH}")
    there: list[bool] = []

    def look(*_: Any) -> None:
        there.append(memory.exists(f"/out/{SUMMARY_PATH}"))

    progress = SimpleNamespace(expect=lambda *_, **__: None, page=look)
    cfg = replace(two_documents, resume=False)
    run_batch(cfg, stages=stub_stages(cfg), progress=progress)
    assert there == [False, False] and memory.exists(f"/out/{SUMMARY_PATH}")


def test_an_upload_that_fails_at_the_end_is_in_the_summary(
    two_documents: RunConfig, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Flaky(monkeypatch, 99, "refuse")
    cfg, told = replace(two_documents, inputs=two_documents.inputs[:1]), Summary()
    with pytest.raises(OutputError, match="Access Denied"):
        run_batch(cfg, stages=stub_stages(cfg), summary=told)
    kept = (cfg.out / SUMMARY_PATH).read_bytes()
    assert json.loads(kept)["exit_code"] == told.exit_code == ExitCode.ENGINE
    assert memory.cat_file(f"/out/{SUMMARY_PATH}") == kept


def test_a_summary_that_cannot_be_uploaded_is_told_of_and_the_run_is_what_it_was(
    two_documents: RunConfig,
    memory: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = type(memory).pipe_file

    def pipe_file(system: Any, there: str, data: bytes) -> None:
        if there.endswith(SUMMARY_PATH):
            raise ConnectionResetError("the connection was reset")
        real(system, there, data)

    monkeypatch.setattr(type(memory), "pipe_file", pipe_file)
    done = run_batch(two_documents, stages=stub_stages(two_documents))
    assert done.exit_code == ExitCode.OK
    (line,) = [row.message for row in caplog.records if row.levelname == "WARNING"]
    assert f"cannot write memory://out/{SUMMARY_PATH}: the connection was reset" in line


def offered(staged: Path, document: str, files: dict[str, str], pictures: Any = PICTURES) -> None:
    bucket = Bucket("memory://out", staged)
    bucket.offer(document, document, files, pictures)
    bucket.close()


@pytest.mark.parametrize("files", [FILES, MMD_FILES])
def test_figures_that_a_document_lost_are_removed(
    staged: Path, memory: Any, files: dict[str, str]
) -> None:
    _, figure = files
    offered(staged, "a", files)
    # A run in another format leaves the text, and what it links to; it is not forgotten.
    offered(staged, "a", {"a.images/b.md": "4"}, ())
    assert memory.exists("/out/a.md") and memory.exists(f"/out/{figure}")
    offered(staged, "a", {"a.md": "3"})
    assert memory.exists("/out/a.md") and not memory.exists(f"/out/{figure}")


def test_what_went_to_one_url_is_not_taken_for_this_ones_and_removed_there(
    staged: Path, memory: Any
) -> None:
    offered(staged, "a", FILES)
    memory.pipe_file("/out/other/a.images/0001-1.png", b"somebody's")
    bucket = Bucket("memory://out/other", staged)
    bucket.offer("a", "a", {"a.md": "3"}, PICTURES)
    bucket.close()
    assert memory.exists("/out/other/a.images/0001-1.png")


def test_a_document_in_a_folder_named_as_figures_are_is_no_figure(
    staged: Path, memory: Any
) -> None:
    offered(staged, "a.images/b", {"a.images/b.md": "1"}, ("a.images/b.images",))
    offered(staged, "a.images/b", {"a.md": "1"}, ("a.images/b.images",))
    assert memory.exists("/out/a.images/b.md")


def test_a_file_that_went_away_before_its_upload_is_told_of_in_one_line(
    staged: Path, memory: Any
) -> None:
    with pytest.raises(OutputError, match=r"gone\.md.*Run the same command again"):
        offered(staged, "a", {"gone.md": "1"})


def test_a_second_stop_gives_up_uploads_under_way(
    staged: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Flaky(monkeypatch, 99, "drop")
    monkeypatch.setattr("ocr2cli.output.bucket._FIRST_PAUSE_S", 5.0)
    stops = [0]
    bucket = Bucket("memory://out", staged, stop=lambda: stops[0])
    bucket.offer("a", "a", FILES)
    stops[0] = 2
    started = time.monotonic()
    bucket.close()
    assert time.monotonic() - started < 2


def test_the_marker_says_who_writes_and_where_its_state_is(staged: Path, memory: Any) -> None:
    Bucket("memory://out", staged).close()
    row = json.loads(memory.cat_file("/out/.ocr2/writer.json"))
    assert row["pid"] == os.getpid() and row["state"] == str(staged)
