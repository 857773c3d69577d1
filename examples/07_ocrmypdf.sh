#!/usr/bin/env bash
# A searchable PDF by OCRmyPDF with ocr2 as its engine.   bash examples/07_ocrmypdf.sh
# Needs: pip install -c constraints.txt '.[ocrmypdf]'; neither tesseract nor Ghostscript.
# Expected: the words that a search in the PDF would find.
set -euo pipefail
OUT=${OUT:-out}
mkdir -p "$OUT"
ocrmypdf --quiet --plugin examples/ocrmypdf_plugin.py --output-type pdf --image-dpi 100 \
    eval/bundled/pages/note-door.png "$OUT/07.pdf"
python3 -c 'import pymupdf, sys; print(pymupdf.open(sys.argv[1])[0].get_text())' "$OUT/07.pdf" |
    tee "$OUT/07.txt"
[ -n "$(tr -d '[:space:]' < "$OUT/07.txt")" ]
