#!/usr/bin/env bash
# A forecast; every other output format; the text layer instead of the model where it can be trusted.
#   bash examples/08_formats.sh
# Expected on the last line: 7, the kinds of files that are there.
set -euo pipefail
OUT=${OUT:-out}
pages=(examples/documents/letter.pdf --pages 1 --max-new-tokens 200)
ocr2 run "${pages[@]}" -o "$OUT/08" --dry-run --price-per-hour 2
# Exit 5 says that some pages looped or were cut: the bundled model is small.
ocr2 run "${pages[@]}" -o "$OUT/08" --format html,pdf,layout,mmd,json --rotate auto || [ $? -eq 5 ]
ocr2 run "${pages[@]}" -o "$OUT/08/layer" --text-layer auto
grep -q 'The Harbour Ledger' "$OUT/08/layer/letter.md"
find "$OUT/08" -maxdepth 1 -name 'letter*' -type f | sort | tee "$OUT/08/files.txt"
wc -l < "$OUT/08/files.txt"
