#!/usr/bin/env bash
# From a bucket and into one:   bash examples/09_bucket.sh
# Needs: pip install -c constraints.txt '.[s3]' 'moto[server]'. The store is moto's server on this machine; in earnest
# leave it out and set the credentials of yours. Expected on the last line: uploaded, then the object.
set -euo pipefail
OUT=${OUT:-out}
mkdir -p "$OUT/09"
export AWS_ACCESS_KEY_ID=key AWS_SECRET_ACCESS_KEY=secret AWS_DEFAULT_REGION=us-east-1
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
moto_server -H 127.0.0.1 -p "$port" > "$OUT/09/store.txt" 2>&1 &
store=$!
trap 'kill $store; wait $store || true' EXIT
python3 - <<'PYTHON'
import time

import boto3

s3 = boto3.client("s3")
for _ in range(100):
    try:
        s3.create_bucket(Bucket="paper")
        break
    except Exception:
        time.sleep(0.2)
s3.upload_file("eval/bundled/pages/note-ferry.png", "paper", "in/note.png")
PYTHON
# Exit 5 says that some pages looped or were cut: the bundled model is small.
ocr2 run s3://paper/in -o s3://paper/out --state "$OUT/09/state" --prompt ocr --runner inline \
    --max-new-tokens 100 || [ $? -eq 5 ]
python3 -c 'import boto3; print("uploaded", boto3.client("s3").head_object(Bucket="paper", Key="out/note.md")["ContentLength"] > 20 and "note.md")'
