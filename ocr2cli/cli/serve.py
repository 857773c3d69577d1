"""`ocr2 serve`: the HTTP server's flags, its address rule and its end."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import socket
import traceback
from typing import Any

import click

from ocr2cli.cli.options import FiniteRange, common, option, set_up_logging
from ocr2cli.cli.run import decode_options, engine_options
from ocr2cli.cli.settings import decode_config, engine_config, give_way
from ocr2cli.errors import EngineError, UsageError, extra_hint

_LIMIT = click.IntRange(min=1)


@click.command(short_help="Serve an OpenAI-compatible HTTP endpoint.")
@option("--host", default="127.0.0.1", help="Address to listen on.")
@option("--port", default=8080, type=click.IntRange(0, 65535), help="Port; 0: any free one.")
@option("--api-key", default="", show_default="none",
        help="Key clients must send; needed for any address but loopback.")
@option("--allow-http", is_flag=True, show_default=False, help="Fetch http(s) image URLs.")
@option("--max-body", default=64_000_000, type=_LIMIT, help="Bytes of one request.")
@option("--max-pages", default=200, type=_LIMIT, help="Pages of one document.")
@option("--max-queue", default=256, type=_LIMIT, help="Pages waiting; more get status 429.")
@option("--max-seconds", default=600.0, type=FiniteRange(min=0, min_open=True),
        help="Seconds a request may take.")
@option("--runner", default="local", type=click.Choice(["local", "inline"]),
        help="Where the workers run.")
@engine_options
@decode_options
@common
def serve(
    host: str, port: int, api_key: str, allow_http: bool, max_body: int, max_pages: int,
    max_queue: int, max_seconds: float, runner: str, **flags: Any,
) -> None:  # fmt: skip
    """Serve /v1/chat/completions, /v1/ocr, /v1/models, /health, /metrics, and a page at /."""
    give_way(click.get_current_context(), flags)
    set_up_logging(**{name: flags.pop(name) for name in ("verbose", "quiet", "log_format")})
    if not api_key and not is_loopback(host):
        raise UsageError(f"--host {host} is open to others: give --api-key KEY as well")
    try:
        import uvicorn

        from ocr2cli.serve.server import Server, ServerSettings
    except ImportError:
        raise EngineError(f"ocr2 serve needs more packages. {extra_hint('serve')}") from None
    from ocr2cli.config import RunConfig
    from ocr2cli.pipeline.process import wait_quietly
    from ocr2cli.serve.engine import Limits, ServeEngine

    if runner == "inline":
        wait_quietly(os.environ)  # as the workers of the other, before torch is imported
    cfg = RunConfig(engine=engine_config(flags), decode=decode_config(flags), runner=runner)
    engine = ServeEngine(cfg, Limits(max_body, max_pages, max_queue, max_seconds))
    server = Server(engine, ServerSettings(cfg.engine.model, api_key, allow_http))
    web = uvicorn.Server(uvicorn.Config(
        server.app(), log_config=None, log_level="warning", access_log=False,
        timeout_graceful_shutdown=int(cfg.drain),
    ))  # fmt: skip
    log_as_ours("uvicorn", logging.WARNING)
    log_as_ours("python_multipart", logging.ERROR)  # the answer says what is wrong with a form
    engine.on_death = lambda: setattr(web, "should_exit", True)
    with contextlib.closing(listen(host, port)) as listener:
        shown = f"[{host}]" if ":" in host else host
        # On stdout and at once: with --port 0 a script has to learn the port.
        click.echo(f"ocr2 serves {cfg.engine.model} at http://{shown}:{listener.getsockname()[1]}")
        # Raises KeyboardInterrupt once all is closed, which the border knows.
        web.run(sockets=[listener])
    if engine.error is not None:
        raise engine.error


def log_as_ours(name: str, level: int) -> None:
    """Send a library's log lines where ours go, in their form."""
    logger, ours = logging.getLogger(name), logging.getLogger("ocr2")
    logger.setLevel(max(level, ours.level))
    logger.propagate = False
    handler = logging.Handler()
    handler.emit = _pass_on  # type: ignore[method-assign]
    logger.handlers[:] = [handler]


def _pass_on(record: logging.LogRecord) -> None:
    """A line of a library as one of ours: a traceback, which may stand in its text, becomes its
    error and where that was raised. What a second Ctrl-C cuts off is no news."""
    text = record.getMessage().strip()
    if error := record.exc_info and record.exc_info[1]:
        text = "\n".join([text, *traceback.format_exception(error)]).strip()
    if _TRACEBACK in text:
        title, _, trace = text.partition(_TRACEBACK)
        last = trace.splitlines()[-1]
        if last.startswith(_ENDED):
            return
        frames = [line.strip() for line in trace.splitlines() if line.startswith("  File ")]
        text = ": ".join([*title.split("\n")[:1], last, *frames[-1:]]).removeprefix(": ")
    logging.getLogger("ocr2").log(record.levelno, "%s", text)


_TRACEBACK = "Traceback (most recent call last):\n"
# The last lines of tracebacks that only say that the server was told to end.
_ENDED = ("asyncio.exceptions.CancelledError", "KeyboardInterrupt", "SystemExit")


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises: EngineError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise EngineError(
            f"cannot listen on {host} port {port}: {error.strerror or error}. "
            "Choose another --port, or --port 0 for any free one"
        ) from None


def is_loopback(host: str) -> bool:
    """True when only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
