"""Ask `ocr2 serve` with the official OpenAI client:   python examples/04_openai_client.py

Needs `pip install -c constraints.txt '.[serve]' openai`. Expected: the model's name, the text of a
note as it comes, line by line, then the tokens it took.
"""

import base64
import subprocess
from pathlib import Path

import openai

# A port of the system's choosing; the address is the last word of the server's first line. One
# process is enough here: without --runner inline each stage has its own.
command = ["ocr2", "serve", "--port", "0", "--runner", "inline", "--max-new-tokens", "80"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
try:
    address = server.stdout.readline().split()[-1]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none asked for", timeout=600)
    model = client.models.list().data[0].id
    print("model", model)

    page = Path("eval/bundled/pages/note-door.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(page).decode()
    message = {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "Free OCR."},
        ],
    }
    for chunk in client.chat.completions.create(model=model, messages=[message], stream=True):
        print(chunk.choices[0].delta.content or "", end="")
    print()
    answer = client.chat.completions.create(model=model, messages=[message])
    print(answer.usage.prompt_tokens, "prompt tokens,", answer.usage.completion_tokens, "new ones")
finally:
    server.terminate()
    server.wait()
