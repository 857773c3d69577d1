"""`ocr2 completion`: the script that teaches a shell to complete ocr2's commands and options.

Knows nothing about the options: the script asks `ocr2` itself, so that it never grows old.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ocr2cli.cli.options import common, set_up_logging
from ocr2cli.errors import ExitCode

COMPLETE_VAR = "_OCR2_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(SHELLS))
@common
def completion(shell: str, verbose: int, quiet: bool, log_format: str) -> int:
    """Print the completion script of SHELL. Once, for good:

    \b
    bash  ocr2 completion bash > ~/.local/share/bash-completion/completions/ocr2
    zsh   ocr2 completion zsh > "${fpath[1]}/_ocr2"
    fish  ocr2 completion fish > ~/.config/fish/completions/ocr2.fish
    """
    from ocr2cli.cli.main import ocr2

    set_up_logging(verbose=verbose, quiet=quiet, log_format=log_format)
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three shells"
    source = kind(ocr2, {}, "ocr2", COMPLETE_VAR)
    # Not `source()`: for bash that starts a bash to look at its version.
    click.echo(source.source_template % source.source_vars())
    return ExitCode.OK
