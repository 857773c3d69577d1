"""The table of formats: name -> the function that writes it, imported when asked for.

The one list of their names. Importing it loads no other module of this folder, since the command
line reads it. Knows nothing about what the functions do.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from ocr2cli.errors import UsageError

if TYPE_CHECKING:
    from ocr2cli.output.assembly import Assembly

WriteFormat: TypeAlias = "Callable[[Assembly], None]"

FORMATS = {
    "md": "ocr2cli.output.markdown:write_markdown",
    "jsonl": "ocr2cli.output.jsonl:write_jsonl",
    "json": "ocr2cli.output.json_document:write_json",
    "html": "ocr2cli.output.html:write_html",
    "pdf": "ocr2cli.output.searchable_pdf:write_searchable_pdf",
    "layout": "ocr2cli.output.layout:write_layout",
    "mmd": "ocr2cli.output.mmd:write_mmd",
}

# These draw the model's boxes.
BOX_FORMATS = frozenset({"layout", "mmd"})
# These link to `<stem>.images/`; the others carry their pictures themselves.
LINKING_FORMATS = frozenset({"md", "jsonl", "json"})


def load_formats(names: tuple[str, ...]) -> list[WriteFormat]:
    """The functions of `names`, in the table's order.

    Raises: UsageError for a name that is not in the table, and for none at all.
    """
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        what = f"there is no format {unknown[0]!r}" if unknown else "no format was given"
        raise UsageError(f"{what}. `--format` takes a list of {', '.join(FORMATS)}.")
    targets = [FORMATS[name].split(":") for name in FORMATS if name in names]
    return [getattr(import_module(module), function) for module, function in targets]
