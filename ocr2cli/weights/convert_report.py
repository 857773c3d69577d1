"""What a conversion wrote and how far it rounded.

Knows numbers and their table; knows nothing about tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class ErrorRow:
    """Rounding of the tensors of one kind. max_abs: largest difference. The rest: sums."""

    kind: str
    dtype: str
    num_tensors: int = 0
    numel: int = 0
    max_abs: float = 0.0
    squared_error: float = 0.0
    squared_value: float = 0.0

    @property
    def relative_rms(self) -> float:
        """Root of squared error over squared value; 0 when nothing changed."""
        if not self.squared_error:
            return 0.0
        return math.sqrt(self.squared_error / max(self.squared_value, 1e-300))


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What was written. rows: one for each kind of tensor and dtype."""

    paths: tuple[Path, ...]
    num_bytes: int
    rows: tuple[ErrorRow, ...]
    warnings: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """True when every value stands in the new files as it stood in the old."""
        return all(not row.squared_error and not row.max_abs for row in self.rows)

    def to_text(self, *, with_errors: bool = True) -> str:
        """A few lines for people, the error table under them."""
        lines = [f"wrote {path}" for path in self.paths]
        exact = "every value unchanged" if self.is_exact else "values rounded"
        lines.append(f"{self.num_bytes:,} bytes, {exact}")
        lines += [f"warning: {warning}" for warning in self.warnings]
        if with_errors:
            lines += ["", f"{'tensors':<24} {'as':<5} {'count':>6} {'max abs error':>14} "
                      f"{'relative rms':>13}"]
            lines += [
                f"{row.kind:<24} {row.dtype:<5} {row.num_tensors:>6} {row.max_abs:>14.3e} "
                f"{row.relative_rms:>13.3e}"
                for row in self.rows
            ]
        return "\n".join(lines)
