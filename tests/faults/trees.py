"""What a run left behind, for comparing."""

from __future__ import annotations

from pathlib import Path


def leftovers(out: Path) -> list[str]:
    """Temporary files that no rerun would sweep."""
    staged = list((out / ".ocr2" / "tmp").glob("*"))
    return sorted(str(path) for path in [*out.rglob("*.tmp"), *staged])


def living(marker: str) -> list[int]:
    """Processes whose environment holds `marker`: the run's own, however they are called."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker.encode() in environ and state != "Z":
            found.append(int(folder.name))
    return found
