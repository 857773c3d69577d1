#!/usr/bin/env bash
# One PDF to markdown with the bundled model:   bash examples/01_one_pdf.sh
# Expected: out/01/letter.md, with the text of three pages between page markers.
set -euo pipefail
OUT=${OUT:-out}
ocr2 run examples/documents/letter.pdf --prompt ocr -o "$OUT/01" --pages 1-3
grep -c '<!-- page:' "$OUT/01/letter.md"
