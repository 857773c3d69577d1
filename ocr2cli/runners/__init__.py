"""The table of runners: name -> the module whose `run` reads, imported when asked for.

Those of this machine are in `pipeline/`, the one for many in this folder.
"""

RUNNERS = {
    "local": "ocr2cli.pipeline.local",
    "inline": "ocr2cli.pipeline.inline",
    "ray": "ocr2cli.runners.ray",
}
