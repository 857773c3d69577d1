"""How far a page's confidence tells how well it was read: `python eval/reliability.py`.

Reads the bundled pages with the bundled model, plots each page's confidence (geometric mean of its
token probabilities, and their 5th percentile) against its share of right characters (1 - CER of the
whole page, at least 0), and prints the rank correlation. Writes eval/bundled/reliability.png.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import ocr2cli
from ocr2cli.eval.metrics import cer, fold

SUITE = Path(__file__).parent / "bundled"


def main() -> None:
    pages = sorted((SUITE / "pages").glob("*.png"))
    rows = []
    for page in ocr2cli.read_pages(pages, prompt="ocr", max_new_tokens=400, recover_loops=False):
        truth = (SUITE / "truth" / f"{page.key.document}.txt").read_text(encoding="utf-8")
        right = max(0.0, 1.0 - cer(fold(truth), fold(page.raw)))
        rows.append((page.key.document, page.confidence or 0.0, page.confidence_p5 or 0.0, right))
    for name, mean, low, right in sorted(rows, key=lambda row: row[1]):
        print(f"{name:<16} confidence {mean:.3f}  p5 {low:.3f}  right {right:.3f}")
    mean, low, right = (np.array([row[column] for row in rows]) for column in (1, 2, 3))
    print(f"rank correlation with the share of right characters: confidence "
          f"{rank_correlation(mean, right):.2f}, p5 {rank_correlation(low, right):.2f}, "
          f"{len(rows)} pages")  # fmt: skip
    plot(mean, low, right)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [values.argsort().argsort() for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def plot(mean: np.ndarray, low: np.ndarray, right: np.ndarray) -> None:
    figure, axes = plt.subplots(figsize=(6, 5))
    axes.plot([0, 1], [0, 1], color="0.8", label="confidence = share of right characters")
    axes.scatter(mean, right, label="mean of the page")
    axes.scatter(low, right, marker="x", label="5th percentile")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="right characters (1 - CER)",
             title="nano on the bundled pages")  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize="small")
    figure.tight_layout()
    figure.savefig(SUITE / "reliability.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
