"""The cluster file of the examples is one that Ray takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def config(repo: Path) -> dict[str, Any]:
    import yaml

    found = yaml.safe_load((repo / "examples" / "ray-cluster.yaml").read_text())
    assert isinstance(found, dict)
    return found


def test_ray_takes_the_file(config: dict[str, Any]) -> None:
    import jsonschema
    import ray.autoscaler

    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))


def test_what_is_installed_is_held_to_the_constraints(config: dict[str, Any]) -> None:
    installs = [line for line in config["setup_commands"] if "pip install" in line]
    assert installs and all(" -c CONSTRAINTS " in line for line in installs)


def test_the_head_reads_no_page_and_all_workers_are_asked_for_at_once(
    config: dict[str, Any],
) -> None:
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    # Without demand the autoscaler starts the minimum, and ocr2 makes no demand.
    assert types and all(one["min_workers"] == one["max_workers"] > 0 for one in types.values())
