#!/usr/bin/env bash
# A folder, twice: the second run has nothing left to do.   bash examples/02_folder_resume.sh
# Expected on the last line: the number of pages taken over from the first run.
set -euo pipefail
OUT=${OUT:-out}
ocr2 run examples/documents --prompt ocr -o "$OUT/02" -q || [ $? -eq 5 ]
{ ocr2 run examples/documents --prompt ocr -o "$OUT/02" -q --json || [ $? -eq 5 ]; } |
    python3 -c 'import json, sys; print("resumed", json.load(sys.stdin)["pages_resumed"])'
