"""The one command besides the suite: lint, types, layers, examples. `make check` runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).parents[1]


def main() -> int:
    failed = [name for name, command in checks() if not passes(name, command)]
    print("check: " + (f"FAILED: {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed else 0


def checks() -> list[tuple[str, list[str]]]:
    python = sys.executable
    return [
        ("lint", [python, "-m", "ruff", "check", "."]),
        ("types", [python, "-m", "mypy"]),
        ("layers", [python, "-m", "pytest", "-q", "tests/test_layers.py"]),
        ("container files", ["hadolint", "Dockerfile", "Dockerfile.cuda"]),
        ("page of the command line", [python, "docs/make_cli.py", "--check"]),
        *((f"example {path.name}", example(path)) for path in sorted(REPO.glob("examples/[0-9]*"))),
    ]


def example(path: Path) -> list[str]:
    """Examples say on their first lines what they need; those that need more are run elsewhere."""
    return [sys.executable, str(path)] if path.suffix == ".py" else ["bash", str(path)]


def passes(name: str, command: list[str]) -> bool:
    with tempfile.TemporaryDirectory() as out:
        bin_folder = Path(sys.executable).parent
        env = {
            **os.environ,
            "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}",
            "OUT": out,
            "PYTHONPATH": str(REPO),
        }
        done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True)
    print(f"{'ok  ' if done.returncode == 0 else 'FAIL'} {name}", flush=True)
    if done.returncode:
        print(done.stdout[-4000:] + done.stderr[-4000:])
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
