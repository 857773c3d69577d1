"""What every HTML document has around its pages: policy, style and the one script.

The policy allows pictures inside the file, this style and this script, by digest, and nothing
else: no request leaves the page whatever its text holds. `FILE.html#least-sure` opens sorted.
Knows nothing about pages.
"""

from __future__ import annotations

import base64
import hashlib
import html

STYLE = """
:root { color-scheme: light; --ink: #1c1c1e; --soft: #6b6b70; --line: #d9d9de; --hot: #ffd84d; }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #f2f2f4; }
header { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: 4px 24px;
  align-items: baseline; padding: 10px 20px; background: #fff;
  border-bottom: 1px solid var(--line); }
h1 { margin: 0; font-size: 18px; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
main { display: flex; flex-direction: column; gap: 20px; padding: 20px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 14px 18px; }
section.unsure { border-left: 6px solid #e08a00; }
section.bad { border-left: 6px solid #c4262e; }
h2 { margin: 0 0 10px; font-size: 15px; }
h2 span { margin-left: 12px; font-weight: 400; color: var(--soft); }
.bad h2 .status { color: #c4262e; font-weight: 600; }
h2 .warning { padding: 1px 8px; border-radius: 9px; color: #6b4300; background: #ffe3b3; }
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 20px; }
.scan { position: relative; align-self: start; margin: 0; border: 1px solid var(--line); }
.scan img { display: block; width: 100%; height: auto; }
.scan svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: transparent; stroke: #2166ac; stroke-width: 1.5; vector-effect: non-scaling-stroke;
  stroke-opacity: .45; }
rect.image { stroke: #1b7837; } rect.title, rect.sub_title { stroke: #b2182b; }
rect.table { stroke: #762a83; }
rect:hover, rect.hot { fill: var(--hot); fill-opacity: .35; stroke-opacity: 1; }
.text { min-width: 0; overflow-wrap: anywhere; }
.block { overflow-x: auto; padding: 2px 8px; border-left: 3px solid transparent; }
.block.hot { background: #fff6d1; border-left-color: var(--hot); }
.block h3, .block h4, .block h5, .block h6 { margin: 8px 0; line-height: 1.25; }
.block p, .block center { margin: 8px 0; white-space: pre-line; }
.block ul, .block ol { margin: 4px 0; }
/* Hebrew and Arabic begin at the right. */
.block :is(p, center, li, h3, h4, h5, h6, td, th) { unicode-bidi: plaintext; }
.block img { display: block; max-width: 100%; height: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 14px; overflow-wrap: normal; }
td, th { border: 1px solid var(--line); padding: 2px 6px; vertical-align: top; }
pre, code { font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap; }
.failure { max-width: 80ch; margin: 0; overflow-wrap: anywhere; }
.empty { color: var(--soft); font-style: italic; }
@media (max-width: 800px) { .pair { grid-template-columns: minmax(0, 1fr); } }
@media print {
  body { font-size: 13px; background: none; } header { position: static; } label { display: none; }
  main { display: block; padding: 0; } section + section { margin-top: 12px; }
  section + section:has(.pair) { break-before: page; margin-top: 0; }
  h2 { break-after: avoid; } tr { break-inside: avoid; }
  /* Floats, for Chromium moves a grid that needs a second sheet there whole. */
  .pair { display: flow-root; } .text { margin-left: 51%; }
  .scan, .pair > .empty { float: left; max-width: 48%; }
  .scan img { width: auto; max-width: 100%; max-height: 90vh; }
  .block { overflow: visible; } table { font-size: 11px; overflow-wrap: anywhere; }
}
"""

SCRIPT = """
const main = document.querySelector("main");
const pages = [...main.children];
const rank = page => Number(page.dataset.rank);
const sort = document.getElementById("sort");
const arrange = () =>
  main.append(...(sort.checked ? [...pages].sort((a, b) => rank(a) - rank(b)) : pages));
sort.addEventListener("change", arrange);
if (location.hash === "#least-sure") { sort.checked = true; arrange(); }
const mark = (event, isHot) => {
  const block = event.target.closest && event.target.closest("[data-block]");
  if (!block) return;
  for (const other of block.closest("section").querySelectorAll("[data-block]"))
    if (other.dataset.block === block.dataset.block) other.classList.toggle("hot", isHot);
};
main.addEventListener("pointerover", event => mark(event, true));
main.addEventListener("pointerout", event => mark(event, false));
"""


def digest(text: str) -> str:
    """What a policy calls a style or a script inside the page."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


POLICY = (
    "default-src 'none'; img-src data:; "
    f"style-src 'sha256-{digest(STYLE)}'; script-src 'sha256-{digest(SCRIPT)}'; "
    "base-uri 'none'; form-action 'none'"
)


def head(title: str, subtitle: str) -> str:
    """Everything before the first page. title, subtitle: any text."""
    name = html.escape(title)
    return (
        '<!doctype html>\n<html lang="und">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header><h1>{name}</h1>"
        f"<p>{html.escape(subtitle)}</p>"
        '<label><input type="checkbox" id="sort" autocomplete="off"> least sure first</label>'
        "</header>\n<main>\n"
    )


def tail() -> str:
    """Everything after the last page."""
    return f"</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
