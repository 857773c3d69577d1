"""ocr2: piles of PDFs and images to markdown with DeepSeek-OCR-2.

The public API is `__all__`; anything else may change in any release. Importing this module loads
neither torch nor pymupdf.
"""

from __future__ import annotations

from ocr2cli.errors import Ocr2Error
from ocr2cli.pages import Box, Document, PageError, PageResult, Status

__version__ = "0.1.0"

__all__ = [
    "Box",
    "Document",
    "Ocr2Error",
    "PageError",
    "PageResult",
    "Status",
    "__version__",
    "read",
    "read_documents",
    "read_pages",
    "to_markdown",
]

_API = ("read", "read_documents", "read_pages", "to_markdown")


def __getattr__(name: str) -> object:
    """Load the API on first use: `import ocr2cli` and `ocr2 --help` stay fast."""
    if name in _API:
        from ocr2cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'ocr2cli' has no attribute {name!r}")
