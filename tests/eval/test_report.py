"""The report's three forms: complete, self-contained, and safe against what a page says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from eval_toys import TRUTH, failed_result, page_result

from ocr2cli.config import RasterConfig
from ocr2cli.errors import GateFailed, OutputError
from ocr2cli.eval import report_html
from ocr2cli.eval.cases import Case
from ocr2cli.eval.diff import diff_html, diff_words
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.plot import Bar, bar_chart
from ocr2cli.eval.provenance import ModelFacts
from ocr2cli.eval.reference import Reference, ReferenceOutput
from ocr2cli.eval.report import json_report, text_report, write_report
from ocr2cli.eval.report_html import html_report
from ocr2cli.eval.run import EvalOptions, EvalOutcome, run_eval
from ocr2cli.pages import PageImage, PageResult

HOSTILE = '<script src="http://evil.example/x.js"></script><img src="http://evil.example/y.png">'


@pytest.fixture
def outcome(make_suite: Callable[..., Path], v2_model: ModelFacts) -> EvalOutcome:
    gates = '[[gate]]\nmetric = "whole_cer"\nat_most = 0.01\nreason = "a <strict> limit"'
    folder = make_suite(("good", "lost", "worse", "hostile"), gates=gates)

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        texts = {"good": TRUTH, "worse": TRUTH.replace("Monday", "Sunday"), "hostile": HOSTILE}
        return [
            failed_result(case) if case.id == "lost" else page_result(case, texts[case.id])
            for case in cases
        ]

    def read(case: Case, page: PageImage) -> ReferenceOutput:
        return ReferenceOutput(TRUTH, tuple(TRUTH.encode()))

    return run_eval(
        EvalOptions(suites=(str(folder),), ref="hf"),
        reader,
        reference=Reference("hf", {"transformers": "5.23.0"}, read),
        model=v2_model,
    )


def test_json_carries_provenance_scores_and_verdicts(outcome: EvalOutcome) -> None:
    report = json.loads(json.dumps(json_report(outcome)))
    assert report["passed"] is False and report["schema"] == 1
    assert report["model"]["digest"] == "ab" * 32 and report["model"]["dtype"] == "float32"
    assert {"torch", "pillow", "pymupdf", "jiwer", "sacrebleu"} <= set(report["model"]["versions"])
    assert report["reference"] == {"name": "hf", "transformers": "5.23.0"}
    assert "version:" in report["chrf_signature"]
    (suite,) = report["suites"]
    low, high = suite["mean_interval_95"]["whole_cer"]
    assert 0 <= low <= suite["mean"]["whole_cer"] <= high
    case = suite["cases"][0]
    assert (
        case["scores"]["cer"] == 0.0
        and case["prompt"] == "<image>\nFree OCR."
        and case["page"] == 1
    )
    assert re.fullmatch("[0-9a-f]{64}", case["input_sha256"])
    assert case["decode"]["no_repeat_ngram"] == 20
    assert {v["reason"] for v in suite["verdicts"]} == {"a <strict> limit"}


def test_a_page_cannot_send_escape_codes_to_the_terminal(
    make_suite: Callable[..., Path], v2_model: ModelFacts
) -> None:
    extra = '[[case.fact]]\nkind = "cell"\ncell = "Mon"\nright = "31"'
    table = "<table><tr><td>Mon</td><td>\x1b[31mred\x07</td></tr></table>"

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        return [page_result(case, table) for case in cases]

    options = EvalOptions(suites=(str(make_suite(case_extra=extra)),))
    report = text_report(run_eval(options, reader, model=v2_model))
    assert "\\x1b[31mred\\x07" in report
    assert all(c.isprintable() or c == "\n" for c in report)


def test_secrets_stay_out_of_the_report(outcome: EvalOutcome) -> None:
    settings = json_report(outcome)["settings"]
    assert "api_key" not in settings["engine"] and "password" not in settings["raster"]


def test_pages_of_one_name_in_two_suites_are_told_apart(
    make_suite: Callable[..., Path], v2_model: ModelFacts, tmp_path: Path
) -> None:
    gates = "".join(
        f'[[gate]]\nmetric = "whole_cer"\nat_most = 0.01\nreason = "strict"\n{more}\n'
        for more in ("", "is_overall = true")
    )
    folder = make_suite(("good", "one"), gates=gates)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    text = (other / "suite.toml").read_text().replace('"toy"', '"other"')
    (other / "suite.toml").write_text(text)

    def reader(cases: Sequence[Case]) -> list[PageResult]:
        words = {("toy", "one"): "wrong"}
        return [page_result(case, words.get((case.suite, case.id), TRUTH)) for case in cases]

    outcome = run_eval(
        EvalOptions(suites=(str(folder), str(other)), ref="none"), reader, model=v2_model
    )
    report = text_report(outcome)
    assert re.search(r"FAILED whole_cer <= 0\.01: toy/one 0\.\d+, toy/overall 0\.\d+\n", report)
    with pytest.raises(GateFailed, match="gate failed: toy/one: whole_cer"):
        outcome.raise_for_gates()
    html = html_report(outcome)
    assert "toy/one 0." in html and "other/overall 0.0000" in html
    # The row of the page that failed, and the gates'.
    assert html.count('<tr class="failed"><td><a') == 1
    suites = json_report(outcome)["suites"]
    assert [v["where"] for v in suites[1]["verdicts"]] == ["good", "one", "overall"]


def test_the_terminal_names_failed_gates_with_value_limit_and_reason(outcome: EvalOutcome) -> None:
    report = text_report(outcome)
    worse = 2 / len(TRUTH)  # "Monday" read as "Sunday"
    assert f"FAILED whole_cer <= 0.01: lost 1.0000, worse {worse:.4f}, hostile" in report
    assert "why this limit: a <strict> limit" in report
    assert re.search(r"^good +ok +0\.0000 +100\.00", report, re.MULTILINE)
    assert re.search(r"^lost +failed +1\.0000", report, re.MULTILINE)
    assert "parity: 1 of 4 pages have the reference's exact tokens" in report
    assert "95 % interval" in report and "nc:6" in report


class Links(HTMLParser):
    """Everything in the file that could make a browser ask for something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        self.targets += [v for k, v in attrs if k in ("src", "href", "data", "action") and v]


def test_html_asks_for_nothing_and_runs_nothing(outcome: EvalOutcome) -> None:
    html = html_report(outcome)
    links = Links()
    links.feed(html)
    assert not links.tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in links.targets)
    assert {target[1:] for target in links.targets if target.startswith("#")} <= links.ids
    assert "url(" not in html and "@import" not in html
    assert "default-src 'none'" in html


def test_what_a_page_says_is_shown_and_not_obeyed(outcome: EvalOutcome) -> None:
    html = html_report(outcome)
    assert "<script" not in html and "evil.example" in html
    assert "a &lt;strict&gt; limit" in html


def test_the_worst_page_comes_first_and_the_best_last(outcome: EvalOutcome) -> None:
    html = html_report(outcome)
    names = re.findall(r"<h4>(\w+)", html)
    assert names.index("lost") < names.index("worse") < names.index("good")
    assert names[-1] == "good"


def test_each_page_shows_image_truth_ours_reference_and_differences(outcome: EvalOutcome) -> None:
    html = html_report(outcome)
    article = html[html.index('id="toy-worse"'.replace("-", "_2d")) :].partition("</article>")[0]
    for heading in ("Page", "Truth", "Ours", "Reference", "Truth to ours", "Reference to ours"):
        assert f"<h5>{heading}</h5>" in article
    assert 'src="data:image/png;base64,' in article
    assert "<del>Mo</del><ins>Su</ins>nday" in article


def _holds_pixels(value: object) -> bool:
    """Whether a page's pixels hang on anything below `value`."""
    if is_dataclass(value) and not isinstance(value, type):
        return any(_holds_pixels(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, tuple | list | dict):
        return any(map(_holds_pixels, value.values() if isinstance(value, dict) else value))
    return isinstance(value, np.ndarray) and value.size > 1000


def test_an_outcome_keeps_no_pixels(outcome: EvalOutcome) -> None:
    assert len(outcome.cases) == 4 and not _holds_pixels(outcome)


def test_only_so_many_pages_are_drawn_and_only_when_the_report_is_made(
    outcome: EvalOutcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    def load(case: Case, raster: RasterConfig) -> PageImage:
        assert raster is outcome.options.raster
        drawn.append(case.id)
        return load_page(case, raster)

    monkeypatch.setattr(report_html, "load_page", load)
    monkeypatch.setattr(report_html, "MAX_IMAGES", 2)
    assert html_report(outcome).count('src="data:image/png;base64,') == 2
    assert drawn == ["lost", "hostile"]  # the worst ones


def test_a_page_that_has_gone_since_leaves_the_rest_of_the_report(outcome: EvalOutcome) -> None:
    by_id = {case.case.id: case.case.path for case in outcome.cases}
    by_id["good"].unlink()
    by_id["worse"].write_bytes(b"this is no image")
    html = html_report(outcome)
    assert html.count('src="data:image/png;base64,') == 2
    assert html.count("<h5>Truth</h5>") == 4


def test_the_report_is_written_whole_or_refused_in_one_line(
    outcome: EvalOutcome, tmp_path: Path
) -> None:
    write_report(outcome, tmp_path / "deep" / "report")
    names = sorted(path.name for path in (tmp_path / "deep" / "report").iterdir())
    assert names == ["report.html", "report.json"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Give another --report"):
        write_report(outcome, tmp_path / "file")


def test_a_wrong_letter_is_shown_as_one_wrong_letter() -> None:
    assert diff_html("the cat sat", "the cot sat") == "the c<del>a</del><ins>o</ins>t sat"
    assert diff_html("a b", "a b c") == "a b <ins>c</ins>"
    assert diff_html("a & b", "a") == "a <del>&amp; b</del>"


def test_a_diff_holds_both_texts_completely() -> None:
    truth, output = "one two three four", "one tvo four four five"
    stretches = diff_words(truth, output)
    left = "".join(s.text for s in stretches if s.kind != "added")
    right = "".join(s.text for s in stretches if s.kind != "missing")
    assert left.split() == truth.split() and right.split() == output.split()


def test_a_bar_beyond_the_limit_is_cut_and_still_says_its_value() -> None:
    bars = [Bar("a<b", 12.5, 0.1, "bad"), Bar("c", 0.2), Bar("d", 1.5)]
    svg = bar_chart(bars, title="CER", limit=1.5)
    assert "12.500" in svg and "a&lt;b" in svg and svg.count('class="cut"') == 1
    widths = [float(w) for w in re.findall(r'width="([\d.]+)"', svg)]
    assert max(widths) <= 660


def test_bars_of_pages_that_gates_passed_say_so(outcome: EvalOutcome) -> None:
    html = html_report(outcome)
    assert "ours, gates passed" in html and "ours, a gate failed" in html
    assert "ours, not judged" not in html and "cut at" not in html


def test_bars_of_pages_that_no_gate_judged_are_not_drawn_as_passed(
    make_suite: Callable[..., Path], v2_model: ModelFacts
) -> None:
    """They were green, "gates passed", below a badge that said "not judged"."""
    outcome = run_eval(
        EvalOptions(suites=(str(make_suite(("good",))),), ref="none"),
        lambda cases: [page_result(case, TRUTH * 9) for case in cases],
        model=v2_model,
    )
    html = html_report(outcome)
    assert "not judged" in html and "ours, not judged" in html and 'rect class="none"' in html
    assert "gates passed" not in html and "</span> reference" not in html
    assert 'class="cut"' in html and "two strokes: longer, cut at 1.5" in html
