"""Every refusal in OpenAI's form: the one place where an error becomes a status and a body.

Knows nothing about routes or how pages are read.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ocr2cli.errors import Ocr2Error, PageFault, UsageError
from ocr2cli.serve import protocol
from ocr2cli.serve.engine import QueueFull, TooManyPages, for_clients

# What a request may end in besides an answer.
HANDLED = (
    protocol.BadRequest, QueueFull, TooManyPages, UsageError, Ocr2Error, PageFault, TimeoutError,
    ClientDisconnect,
)  # fmt: skip


def refusal_of(error: Exception) -> Response:
    """The answer to a request that ended in one of HANDLED."""
    match error:
        case protocol.BadRequest():
            return error_answer(error.status, str(error), "bad_request")
        case QueueFull():
            wait = {"Retry-After": str(error.retry_after_s)}
            return error_answer(429, "too many pages wait; try again later", "queue_full", wait)
        case TooManyPages():
            return error_answer(413, str(error), "too_many_pages")
        case PageFault():
            return error_answer(422, error.message, error.code)
        case UsageError():
            return error_answer(400, for_clients(str(error)), "bad_request")
        case TimeoutError():
            return error_answer(504, "the pages took longer than this server allows", "timeout")
        case _:
            return error_answer(503, str(error), "engine")


def error_answer(
    status: int, message: str, code: str, headers: dict[str, str] | None = None,
    more: dict[str, Any] | None = None,
) -> JSONResponse:  # fmt: skip
    """A refusal in OpenAI's form. more: what else its body holds."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = {"error": {"message": message, "type": kind, "code": code}, **(more or {})}
    return JSONResponse(body, status, headers=headers)


async def answer_refused(_request: Request, error: HTTPException) -> Response:
    """What starlette itself refuses: an address, a method, a form."""
    codes = {404: "not_found", 405: "method_not_allowed"}
    headers = dict(error.headers or {})
    code = codes.get(error.status_code, "bad_request")
    return error_answer(error.status_code, error.detail, code, headers)


async def answer_bug(_request: Request, error: Exception) -> Response:
    """Anything else."""
    return error_answer(500, f"a bug in ocr2: {type(error).__name__}", "bug")
