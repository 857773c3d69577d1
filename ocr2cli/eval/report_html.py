"""The outcome as one HTML file: no script, no request, worst pages first with their differences.

Knows HTML; judges nothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from ocr2cli.config import RasterConfig
from ocr2cli.errors import InputError, PageFault
from ocr2cli.eval.cases import Case
from ocr2cli.eval.diff import diff_html
from ocr2cli.eval.gates import State, Verdict, group_failed, without_case
from ocr2cli.eval.metrics import Scores, chrf_signature, fold
from ocr2cli.eval.pixels import load_page
from ocr2cli.eval.plot import Bar, bar_chart
from ocr2cli.eval.run import CaseOutcome, EvalOutcome, SuiteOutcome, mean_scores

IMAGE_SIDE = 640
# Beyond this many pages the images make a file no browser likes; the rest go without.
MAX_IMAGES = 60

# Where bars end: one page of many times its truth's length would flatten the others.
_PLOT_END = 1.5
_KEYS = {
    "good": "ours, gates passed",
    "bad": "ours, a gate failed",
    "none": "ours, not judged",
    "tick": "reference",
}

_SHOWN = (
    ("cer", "CER", 4), ("chrf", "chrF", 2), ("whole_cer", "page CER", 4),
    ("whole_chrf", "page chrF", 2), ("word_recall", "words", 3), ("length_ratio", "length", 2),
    ("teds", "TEDS", 3), ("block_distance", "blocks", 4), ("order", "order", 3),
    ("facts", "facts", 3),
)  # fmt: skip


def html_report(outcome: EvalOutcome) -> str:
    """The whole page as text."""
    sections = [_summary(outcome), _gates(outcome)]
    for suite in outcome.suites:
        sections.append(_suite(suite, outcome.options.raster))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>ocr2 eval: {escape(outcome.model.name)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )


def _summary(outcome: EvalOutcome) -> str:
    model, counts = outcome.model, _counts(outcome.verdicts)
    has_failed = counts[State.FAILED] > 0
    word = "failed" if has_failed else ("passed" if counts[State.PASSED] else "not judged")
    not_run = sum(len(suite.not_run) for suite in outcome.suites)
    facts = (
        ("Model", f"{model.name} ({model.kind}, {model.num_parameters / 1e6:,.1f} M parameters)"),
        ("Weights", model.digest or "not known"),
        ("Device", f"{model.device} {model.dtype}"),
        (
            "Reference",
            " ".join(
                [outcome.options.ref, *(f"{k} {v[:16]}" for k, v in outcome.reference_identity)]
            ),
        ),
        ("Pages", f"{len(outcome.cases)} read in {outcome.seconds:.1f} s, {not_run} not run"),
        ("chrF", chrf_signature()),
        ("Versions", ", ".join(f"{k} {v}" for k, v in model.versions.items())),
    )
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    kind = "bad" if has_failed else "good" if counts[State.PASSED] else "none"
    gates = ", ".join(f"{counts[state]} {state.value}" for state in State)
    return (
        f'<header><h1>Evaluation <span class="badge {kind}">{word}</span></h1>'
        f"<p>Gates: {gates}.</p><dl>{rows}</dl></header>"
    )


def _gates(outcome: EvalOutcome) -> str:
    rows = []
    for group in group_failed(outcome.verdicts):
        where = ", ".join(f"{v.where} {_number(v.value, 4)}".strip() for v in group)
        rows.append(_gate_row(group[0], State.FAILED.value, where))
    means = {outcome.place(suite, "overall") for suite in outcome.suites}
    overall = [v for v in outcome.verdicts if v.where in means and v.state is not State.FAILED]
    for verdict in [*overall, *without_case(outcome.verdicts)]:
        state = ": ".join(filter(None, (verdict.state.value, verdict.note)))
        where = f"{verdict.where} {_number(verdict.value, 4)}".strip()
        rows.append(_gate_row(verdict, state, where))
    if not rows:
        return ""
    head = "".join(f"<th>{word}</th>" for word in ("what", "limit", "verdict", "where", "why"))
    table = f"<table><tr>{head}</tr>{''.join(rows)}</table>"
    return f'<section class="gates"><h2>Gates</h2>{table}</section>'


def _gate_row(verdict: Verdict, state: str, where: str) -> str:
    kind = ' class="failed"' if verdict.state is State.FAILED else ""
    cells = (verdict.metric, verdict.rule, state, where, verdict.reason)
    return f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _suite(suite: SuiteOutcome, raster: RasterConfig) -> str:
    worst_first = sorted(suite.cases, key=lambda case: (-badness(case), case.case.id))
    parts = [f"<section><h2>{escape(suite.suite.name)}</h2>"]
    if suite.suite.about:
        parts.append(f"<p>{escape(suite.suite.about)}</p>")
    failed = {verdict.where for verdict in suite.verdicts if verdict.state is State.FAILED}
    passed = {verdict.where for verdict in suite.verdicts if verdict.state is State.PASSED}
    parts.append(_plots(worst_first, suite.suite.name, failed, passed))
    parts.append(_table(suite, failed))
    for skipped in suite.not_run:
        why = f"not run: {skipped.id}: {skipped.not_run}"
        parts.append(f'<p class="skipped">{escape(why)}</p>')
    parts += [f'<p class="skipped">{escape(note)}</p>' for note in suite.suite.notes]
    parts.append(
        '<h3>Pages, worst first</h3><p class="legend">In the comparisons <del>red</del> is '
        "missing from ours and <ins>green</ins> stands in ours alone.</p>"
    )
    verdicts = [verdict for verdict in suite.verdicts if verdict.state is State.FAILED]
    for number, case in enumerate(worst_first):
        mine = [v for v in verdicts if v.where == case.case.id]
        image = _image(case.case, raster) if number < MAX_IMAGES else ""
        parts.append(_page(case, suite.suite.name, mine, image=image))
    return "".join([*parts, "</section>"])


def badness(case: CaseOutcome) -> float:
    """How far down a page belongs: the worst of its scores, 0 for a perfect page."""
    scores = case.ours.scores
    values = [scores.whole_cer, scores.cer, scores.block_distance]
    values += [None if v is None else 1 - v for v in (scores.teds, scores.facts, scores.stopped)]
    return max((value for value in values if value is not None), default=0.0)


def _plots(
    cases: Sequence[CaseOutcome], suite: str, failed: set[str], passed: set[str]
) -> str:
    plots, kinds, is_any_cut = [], set(), False
    for metric, title in (("cer", "CER, aligned"), ("whole_cer", "CER, whole page")):
        bars = [
            Bar(
                name=case.case.id,
                ours=case.ours.scores.get(metric),
                reference=case.reference.scores.get(metric) if case.reference else None,
                kind=_kind(case.case.id, failed, passed),
                href="#" + _anchor(suite, case),
            )
            for case in cases
            if case.ours.scores.get(metric) is not None
        ]
        kinds |= {bar.kind for bar in bars}
        is_any_cut = is_any_cut or any((bar.ours or 0) > _PLOT_END for bar in bars)
        if bars:
            plots.append(f"<figure><figcaption>{title}</figcaption>")
            plots.append(bar_chart(bars, title=title, limit=_PLOT_END) + "</figure>")
    keys = [
        f'<span class="key {kind}"></span> {words}'
        for kind, words in _KEYS.items()
        if kind in kinds or (kind == "tick" and any(case.reference for case in cases))
    ]
    cut = f"; two strokes: longer, cut at {_PLOT_END}" if is_any_cut else ""
    legend = f'<p class="legend">{" ".join(keys)}. Lower is better{cut}.</p>'
    return f'<div class="plots">{"".join(plots)}</div>{legend}' if plots else ""


def _kind(case: str, failed: set[str], passed: set[str]) -> str:
    return "bad" if case in failed else "good" if case in passed else "none"


def _table(suite: SuiteOutcome, failed: set[str]) -> str:
    shown = [s for s in _SHOWN if any(c.ours.scores.get(s[0]) is not None for c in suite.cases)]
    head = "".join(f"<th>{heading}</th>" for _, heading, _ in shown)
    rows = []
    for case in suite.cases:
        state = case.result.status.value if case.result else "missing"
        kind = ' class="failed"' if case.case.id in failed else ""
        link = f'<a href="#{_anchor(suite.suite.name, case)}">{escape(case.case.id)}</a>'
        rows.append(
            f"<tr{kind}><td>{link}</td><td>{state}</td>{_cells(case.ours.scores, shown)}</tr>"
        )
    if len(suite.cases) > 1:
        rows.append(
            f'<tr class="mean"><td>mean</td><td></td>{_cells(mean_scores(suite.cases), shown)}</tr>'
        )
    if any(case.reference for case in suite.cases):
        means = mean_scores(suite.cases, of_reference=True)
        rows.append(
            f'<tr class="mean"><td>reference, mean</td><td></td>{_cells(means, shown)}</tr>'
        )
    return f"<table><tr><th>page</th><th>status</th>{head}</tr>{''.join(rows)}</table>"


def _cells(scores: Scores, shown: Sequence[tuple[str, str, int]]) -> str:
    return "".join(
        f'<td class="number">{_number(scores.get(m), digits)}</td>' for m, _, digits in shown
    )


def _page(case: CaseOutcome, suite: str, failed: Sequence[Verdict], *, image: str) -> str:
    scores, ours = case.ours.scores, case.ours
    line = ", ".join(
        f"{heading} {_number(v, digits)}"
        for m, heading, digits in _SHOWN
        if (v := scores.get(m)) is not None
    )
    parts = [
        f'<article id="{_anchor(suite, case)}"><h4>{escape(case.case.id)} '
        f"<small>{escape(case.case.path.name)}, page {case.case.page + 1}</small></h4><p>{line}</p>"
    ]
    for verdict in failed:
        said = f"{verdict.metric} {_number(verdict.value, 4)}".strip() + f": {verdict.rule}"
        limit = "" if verdict.limit is None else f" (here {verdict.limit:.4f})"
        parts.append(f'<p class="failed">{escape(said + limit)}</p>')
    if case.result and case.result.error:
        parts.append(f'<p class="failed">not read: {escape(case.result.error.message)}</p>')
    parts += [f"<p>{escape(note)}</p>" for note in (*case.notes, *_parity_notes(case))]
    columns = [image] if image else []
    if case.case.has_truth:
        columns.append(_column("Truth", escape(ours.truth)))
    columns.append(_column("Ours", escape(ours.output)))
    theirs = case.reference.output if case.reference else ""
    if theirs:
        columns.append(_column("Reference", escape(theirs)))
    if case.case.has_truth:
        columns.append(_diff("Truth to ours", ours.truth, ours.output))
    if theirs:
        columns.append(_diff("Reference to ours", theirs, ours.output))
    columns += [_facts(case)] if ours.facts else []
    return "".join([*parts, f'<div class="columns">{"".join(columns)}</div></article>'])


def _parity_notes(case: CaseOutcome) -> list[str]:
    parity = case.parity
    if parity is None:
        return []
    logits = (
        ""
        if parity.logit_difference is None
        else f", logit difference {parity.logit_difference:.2e}"
    )
    if parity.is_exact:
        return [f"tokens equal the reference's{logits}"]
    if parity.first_difference is None:
        return [f"text differs from the reference's{logits}"]
    return [
        f"{parity.first_difference} equal tokens, then ours {list(parity.ours_there)} and the "
        f"reference {list(parity.reference_there)}{logits}"
    ]


def _facts(case: CaseOutcome) -> str:
    items = "".join(
        f'<li class="{"held" if fact.holds else "failed"}">{escape(fact.id)}'
        f"{escape(': ' + fact.why if fact.why else '')}</li>"
        for fact in case.ours.facts
    )
    return f'<div class="column"><h5>Facts</h5><ul>{items}</ul></div>'


def _column(heading: str, html: str) -> str:
    body = html if html.strip() else '<span class="empty">nothing</span>'
    return f'<div class="column"><h5>{heading}</h5><div class="text">{body}</div></div>'


def _diff(heading: str, before: str, after: str) -> str:
    return _column(heading, diff_html(fold(before), fold(after)))


def _image(case: Case, raster: RasterConfig) -> str:
    """The page made small; "" when it cannot be read, which its result has said already."""
    from PIL import Image

    try:
        image = Image.fromarray(load_page(case, raster).rgb)
    except (PageFault, InputError):
        return ""
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = io.BytesIO()
    image.quantize(64).save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    alt = escape(f"page image of {case.id}")
    return (
        f'<div class="column picture"><h5>Page</h5><img alt="{alt}" '
        f'src="data:image/png;base64,{data}"></div>'
    )


def _anchor(suite: str, case: CaseOutcome) -> str:
    name = f"{suite}-{case.case.id}"
    return "".join(c if c.isascii() and c.isalnum() else f"_{ord(c):x}" for c in name)


def _counts(verdicts: Sequence[Verdict]) -> dict[State, int]:
    return {state: sum(verdict.state is state for verdict in verdicts) for state in State}


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


_STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#d9dee5;--good:#2f7d5b;--bad:#b3372f;--tick:#1c2430;
--paper:#fff;--wash:#f5f7f9}
*{box-sizing:border-box}
body{margin:0;background:var(--wash);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1500px;margin:0 auto;padding:24px}
header,section{background:var(--paper);border:1px solid var(--line);border-radius:8px;
padding:20px 24px;margin-bottom:20px;overflow-x:auto}
h1{margin:0 0 8px;font-size:26px}h2{margin:0 0 10px;font-size:20px}
h3{margin:26px 0 8px;font-size:17px}
h4{margin:0;font-size:16px}h4 small{color:var(--soft);font-weight:400;margin-left:8px}
h5{margin:0 0 6px;font-size:12px;color:var(--soft);text-transform:uppercase;letter-spacing:.04em}
.badge{font-size:14px;padding:3px 12px;border-radius:12px;color:#fff;vertical-align:middle}
.badge.good{background:var(--good)}.badge.bad{background:var(--bad)}.badge.none{background:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 18px;margin:12px 0 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;margin:8px 0;font-size:14px}
th,td{text-align:left;padding:5px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}.number{text-align:right;font-variant-numeric:tabular-nums}
th:nth-child(n+3){text-align:right}.gates th:nth-child(n+3){text-align:left}
.gates td:nth-child(-n+3){white-space:nowrap}
tr.failed td,.failed{color:var(--bad)}tr.mean td{font-weight:600;border-top:2px solid var(--line)}
a{color:inherit}.skipped,.empty,.legend{color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(480px,1fr));gap:16px}
figure{margin:0}figcaption{font-weight:600;margin-bottom:4px}svg{width:100%;height:auto}
svg .grid{stroke:var(--line)}svg text{font-size:12px;fill:var(--ink)}
svg .axis{text-anchor:middle;fill:var(--soft)}svg .name{text-anchor:end}svg .value{fill:var(--soft)}
svg .good{fill:var(--good)}svg .bad{fill:var(--bad)}svg .none{fill:#8b98a9}
svg .cut{fill:none;stroke:var(--paper);stroke-width:2}svg .tick{stroke:var(--tick);stroke-width:2.5}
.key{display:inline-block;width:14px;height:10px;margin:0 2px 0 14px;border-radius:2px}
.key.none{background:#8b98a9}.key.good{background:var(--good)}.key.bad{background:var(--bad)}
.key.tick{width:3px;height:14px;background:var(--tick);vertical-align:-2px}
article{border-top:1px solid var(--line);padding:16px 0}article p{margin:4px 0}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:16px;margin-top:10px}
.text{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--wash);border-radius:6px;
padding:10px 12px;max-height:420px;overflow:auto;font-size:14px}
.picture img{max-width:100%;max-height:420px;border:1px solid var(--line)}
del{background:#fbd9d6;color:#8c1d18;text-decoration:line-through}
ins{background:#d5efdf;color:#155e3c;text-decoration:none}
ul{margin:0;padding-left:18px}li.held{color:var(--good)}
@media print{.text{max-height:none}}
"""
