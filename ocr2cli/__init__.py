"""ocr2: piles of PDFs and images to markdown with DeepSeek-OCR-2.

The public API; anything not named in `__all__` may change in any release. Importing this module
imports no torch.
"""

from __future__ import annotations

__version__ = "0.1.0"
