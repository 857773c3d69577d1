"""`ocr2 models list|pull|path`: what can be named with --model, and where it lies."""

from __future__ import annotations

import json
from typing import Any

import click

from ocr2cli.cli.options import common, option, set_up_logging


@click.group(short_help="List, pull or locate models.")
def models() -> None:
    """List, pull or locate models."""


@models.command("list")
@option("--json", "as_json", is_flag=True, show_default=False, help="One JSON list on stdout.")
@common
def list_models(as_json: bool, **logs: Any) -> None:
    """Show the models that --model knows by name, and which of them are on this machine."""
    from ocr2cli.weights.hub import known_models

    set_up_logging(**logs)
    rows = known_models()
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        place = row["path"] or "not on this machine"
        click.echo(f"{row['name']:<16} {row['about']}\n{'':<16} {place}")


@models.command()
@click.argument("name")
@common
def path(name: str, **logs: Any) -> None:
    """Print the folder or file of model NAME, whole; downloads nothing."""
    from ocr2cli.weights.hub import local_model

    set_up_logging(**logs)
    # A folder `nano` of one's own, said so, would be taken for the bundled model.
    click.echo(str(local_model(name).path.absolute()))


@models.command()
@click.argument("name")
@common
def pull(name: str, **logs: Any) -> None:
    """Download model NAME (deepseek-ocr-2, deepseek-ocr, or owner/name@revision)."""
    from ocr2cli.weights.hub import pull_model

    set_up_logging(**logs)
    click.echo(str(pull_model(name)))
