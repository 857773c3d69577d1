#!/usr/bin/env bash
# One PDF to markdown with the bundled model:   bash examples/01_one_pdf.sh
# Expected: out/01/letter.md, with the text of three pages between page markers.
set -euo pipefail
OUT=${OUT:-out}
# Exit 5 says that some pages looped or were cut: the bundled model is small.
ocr2 run examples/documents/letter.pdf --prompt ocr -o "$OUT/01" --pages 1-3 || [ $? -eq 5 ]
grep -c '<!-- page:' "$OUT/01/letter.md"
