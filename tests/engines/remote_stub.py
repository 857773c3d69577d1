"""A remote server without a socket, whose answers a test gives; holds no test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

Answer = Callable[[int], httpx.Response]


def chat(**changes: Any) -> httpx.Response:
    message = {"message": {"content": "Read."}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 268, "completion_tokens": 20}
    table = {"choices": [message], "usage": usage} | changes
    return httpx.Response(200, content=json.dumps(table))  # with numbers that JSON does not know


class Server:
    """Answers `/v1/models` itself and page number n (the probe is 0) by `answer(n)`."""

    def __init__(self, answer: Answer, owner: str) -> None:
        self.answer, self.owner, self.num_asked = answer, owner, 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "owned_by": self.owner}]})
        if request.url.path == "/apply-template":
            return httpx.Response(404)
        self.num_asked += 1
        return self.answer(self.num_asked - 1)
