"""Makes `page_factory` importable by its name: test modules are loaded without a package."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
