#!/usr/bin/env bash
# The same document on this machine and on a Ray cluster:   bash examples/06_ray.sh
# Expected on the last line: equal. Needs the extra: pip install -c constraints.txt '.[ray]'.
# Without --address the cluster is one of its own, on this machine and its loopback alone; on a real
# one give --address HOST:6379 (examples/ray-cluster.yaml starts it).
set -euo pipefail
OUT=${OUT:-out}
read_it() {
    # Exit 5 says that some pages looped or were cut: the bundled model is small.
    ocr2 run examples/documents/letter.pdf --prompt ocr --pages 1-2 --max-new-tokens 700 -q "$@" ||
        [ $? -eq 5 ]
}
read_it -o "$OUT/06/here"
read_it -o "$OUT/06/ray" --runner ray
cmp "$OUT/06/here/letter.md" "$OUT/06/ray/letter.md"
echo equal
