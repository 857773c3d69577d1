"""The container files against what they copy, run and promise; `make check` lints them as well."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from ocr2cli.cli.serve import serve

REPO = Path(__file__).parents[2]
FILES = ("Dockerfile", "Dockerfile.cuda")


def instructions(text: str) -> list[tuple[str, str]]:
    """(word, rest) of each instruction, comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in
            (line.partition(" ") for line in joined.splitlines() if line.strip())]  # fmt: skip


def faults(text: str) -> list[str]:
    """What is wrong with a container file, in words."""
    found = []
    steps = instructions(text)
    stages = [rest.split(" AS ")[-1] for word, rest in steps if word == "FROM"]
    for word, rest in steps:
        base = rest.split(" AS ")[0]
        if word == "FROM" and base not in stages and not re.search(r":[\w.-]*\d", base):
            found.append(f"{base} has no tag with a version")
        if word == "RUN" and "pip install" in rest + " " and "--no-cache-dir" not in rest:
            found.append(f"pip keeps its cache: {rest[:60]}")
        if word == "RUN" and "apt-get install" in rest and "rm -rf /var/lib/apt/lists" not in rest:
            found.append(f"apt keeps its lists: {rest[:60]}")
        if word == "COPY" and "--from" not in rest:
            sources = rest.split()[:-1]
            found += [f"{name} is not there" for name in sources if not (REPO / name).exists()]
    users = [rest for word, rest in steps if word == "USER"]
    if not users or users[-1] in ("0", "root"):
        found.append("it runs as root")
    if not any(word == "HEALTHCHECK" for word, _ in steps):
        found.append("serving has no health check")
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_container_file_has_no_fault(name: str) -> None:
    assert faults((REPO / name).read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("python:3.12-slim-bookworm", "python", "no tag"),
        ("USER 1000", "USER root", "as root"),
        ("--no-cache-dir ", "", "keeps its cache"),
        ("COPY models models", "COPY modles models", "modles is not there"),
        ("HEALTHCHECK", "LABEL", "health check"),
    ],
)
def test_the_rules_see_a_fault(old: str, new: str, fault: str) -> None:
    text = (REPO / "Dockerfile").read_text()
    assert old in text and any(fault in line for line in faults(text.replace(old, new)))


@pytest.mark.parametrize("name", FILES)
def test_the_serving_image_starts_a_command_that_exists(name: str) -> None:
    steps = instructions((REPO / name).read_text())
    command = next(json.loads(rest) for word, rest in steps if word == "CMD" and "serve" in rest)
    known = {flag for parameter in serve.params for flag in parameter.opts}
    flags = [part for part in command[1:] if part.startswith("--")]
    assert command[0] == "serve" and flags and set(flags) <= known
    port = command[command.index("--port") + 1]
    assert ("EXPOSE", port) in steps
    check = next(rest for word, rest in steps if word == "HEALTHCHECK")
    assert f"127.0.0.1:{port}/health" in check
    compile(json.loads(check[check.index("CMD ") + 4 :])[2], "healthcheck", "exec")


def test_the_build_context_holds_what_is_copied_and_no_more() -> None:
    rules = (REPO / ".dockerignore").read_text().split("\n")
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set()
    for name in FILES:
        for word, rest in instructions((REPO / name).read_text()):
            if word == "COPY" and "--from" not in rest:
                copied |= set(shlex.split(rest)[:-1])
    assert "*" in rules and copied == allowed
