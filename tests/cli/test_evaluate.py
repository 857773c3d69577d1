"""`ocr2 eval` and `ocr2 doctor` from the command line: exit codes and single lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ocr2cli.cli.main import main
from ocr2cli.config import EngineConfig, RasterConfig
from ocr2cli.eval import provenance, recognize, run
from ocr2cli.eval.provenance import ModelFacts, versions
from ocr2cli.pages import FinishReason, PageKey, PageResult, Status

TRUTH = "The boat came in late on Monday."


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain folder of one page, and an engine that reads TRUTH on every page."""
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (120, 80), "white").save(folder / "boat.png")
    (folder / "boat.txt").write_text(TRUTH, encoding="utf-8")

    def reader(engine: EngineConfig, raster: RasterConfig) -> recognize.Recognize:
        return lambda cases: [
            PageResult(
                PageKey(case.id, 0), Status.OK, TRUTH, TRUTH, finish_reason=FinishReason.STOP
            )
            for case in cases
        ]

    facts = ModelFacts("toy", "v2", "ab" * 32, "cpu", "float32", versions=versions())
    monkeypatch.setattr(run, "batch_recognizer", reader)
    monkeypatch.setattr(run, "model_facts", lambda engine: facts)
    monkeypatch.chdir(tmp_path)
    return folder


def exit_code(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_a_right_page_exits_zero_and_prints_its_scores(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("eval", "--suite", suite, "--ref", "none") == 0
    out, err = capsys.readouterr()
    assert "boat" in out and "0.0000" in out and err == ""


def test_a_failed_gate_exits_seven_with_one_line_on_stderr(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (suite / "boat.txt").write_text("Something else entirely.", encoding="utf-8")
    (suite / "suite.toml").write_text(
        'name = "mine"\n[[case]]\nid = "boat"\npage = "boat.png"\ntruth = "boat.txt"\n'
        'recorded = { cer = 0.0, chrf = 100, by = "a test" }\n',
        encoding="utf-8",
    )
    assert exit_code("eval", "--suite", suite) == 7
    _, err = capsys.readouterr()
    assert err.startswith("ocr2: gate failed: boat: cer") and err.count("\n") == 1


def test_the_report_is_written_and_json_is_one_object(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report"
    assert exit_code("eval", "--suite", suite, "--report", report, "--json") == 0
    parsed = json.loads(capsys.readouterr().out)
    assert parsed == json.loads((report / "report.json").read_text(encoding="utf-8"))
    assert (report / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--suite", "bundle"), 2, "Did you mean 'bundled'?"),
        (("--ref", "h f"), 2, "--ref"),
        (("--suite", "seed"), 3, "no case could be run"),
        (("--ref", "llama.cpp", "--ref-bin", "/nothing/here"), 2, "Build llama.cpp"),
    ],
)
def test_mistakes_are_one_line_with_their_exit_code(
    suite: Path,
    arguments: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chosen = arguments if "--suite" in arguments else ("--suite", str(suite), *arguments)
    assert exit_code("eval", *chosen) == code
    _, err = capsys.readouterr()
    assert message in err and err.count("\n") == 1


def test_a_page_without_truth_exits_three(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (suite / "boat.txt").unlink()
    assert exit_code("eval", "--suite", suite) == 3
    assert "no truth. Put boat.txt or boat.md beside it" in capsys.readouterr().err


def test_an_unknown_key_in_a_suite_exits_two(
    suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (suite / "suite.toml").write_text('name = "x"\ncasse = []\n', encoding="utf-8")
    assert exit_code("eval", "--suite", suite) == 2
    assert "unknown key 'casse'. Did you mean 'case'?" in capsys.readouterr().err


def test_a_missing_model_exits_four(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("eval", "--model", tmp_path / "nothing.gguf", "--suite", "bundled") == 4
    assert exit_code("doctor", "--model", tmp_path / "nothing.gguf") == 4
    assert capsys.readouterr().err.count("\n") == 2


def test_the_digest_of_the_provenance_reads_every_byte(tmp_path: Path) -> None:
    from ocr2cli.weights.hub import ModelFiles

    path = tmp_path / "model.safetensors"
    digests = set()
    for last in b"ab":
        path.write_bytes(bytes(3_000_000) + bytes([last]))
        digests.add(provenance.whole_digest(ModelFiles("x", tmp_path)))
    assert len(digests) == 2
