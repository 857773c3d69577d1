#!/usr/bin/env bash
# Read through a server that holds the model: here `ocr2 serve`, in earnest vLLM, SGLang or
# llama-server on another machine.   bash examples/05_remote_engine.sh
# Needs: pip install -c constraints.txt '.[serve,openai]'. Expected on the last line: 2, the notes that were read.
set -euo pipefail
OUT=${OUT:-out}
mkdir -p "$OUT"
ocr2 serve --port 0 --runner inline --max-new-tokens 300 > "$OUT/server.txt" &
server=$!
trap 'kill $server; wait $server || true' EXIT
until [ -s "$OUT/server.txt" ]; do sleep 0.1; done
url=$(awk '{ print $NF }' "$OUT/server.txt")
# Exit 5 says that some pages looped or were cut: the bundled model is small.
ocr2 run 'eval/bundled/pages/note-[df]*.png' --engine openai --server "$url" --prompt ocr \
    --runner inline -o "$OUT/05" || [ $? -eq 5 ]
find "$OUT/05" -name '*.md' | wc -l
