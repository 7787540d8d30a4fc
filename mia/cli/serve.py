"""`mia serve`: every door of one service, on one port."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from mia.cli import options, output
from mia.errors import ConfigError, require

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from mia.config import Config
    from mia.service.core import Service

GRACE = 10
"""Seconds that requests under way are given to end when the server is to."""


def serve(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(help="The address to listen at; beyond loopback it needs a token.", show_default="127.0.0.1"),
    ] = None,
    port: Annotated[int | None, typer.Option(help="0: any that is free.", show_default="8321")] = None,
    learn: options.Learn = None,
    corpus: options.Corpus = None,
    index: options.Index = None,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    replay: options.Replay = None,
    record: options.Record = None,
    plan: options.Plan = None,
    replan: options.Replan = None,
    memory: options.UseMemory = None,
    frozen: options.Frozen = None,
    judge: options.JudgeKind = None,
    max_calls: options.MaxCalls = None,
    tool: options.Tool = None,
) -> None:
    """Serve: a dashboard, an HTTP API, an OpenAI-compatible chat endpoint and an MCP server.

    What was answered is on the disk before it is sent, and absorbed afterwards; a server that was killed takes up where
    it was. With nothing configured, the small embedded model answers in the offline world. Ctrl-C ends it, after the
    requests under way; a second one at once.
    """
    require("fastapi", extra="service", purpose="`mia serve`")
    from mia.cli.embedded import embedded_default
    from mia.cli.index import announce_first_use
    from mia.service.auth import tokens_path

    config = options.shared(context).config(
        options.team_flags(
            corpus=corpus,
            index=index,
            model=model,
            base_url=base_url,
            replay=replay,
            record=record,
            plan=plan,
            replan=replan,
            memory=memory,
            frozen=frozen,
            judge=judge,
            max_calls=max_calls,
            tool=tool,
        )
        | {"serve.host": host, "serve.port": port, "learn.enabled": learn}
    )
    embedded = embedded_default(config)
    if embedded is not None:
        # Its home is one of its own; the tokens stay where `mia token` keeps them.
        serve = embedded.serve.model_copy(update={"tokens": str(tokens_path(config))})
        config = embedded.model_copy(update={"serve": serve})
    announce_first_use(config)
    _serve(config)


def _serve(config: Config) -> None:
    from mia.service.app import create_app
    from mia.service.auth import Gate, check_address, is_loopback
    from mia.service.core import Service

    # Tokens that cannot be read are told before anything is opened.
    gate = Gate(config)
    check_address(config)
    listening = _listen(config.serve.host, config.serve.port)
    try:
        # A name may lead elsewhere than it says.
        if not is_loopback(listening.getsockname()[0]) and not gate.knows_tokens:
            raise ConfigError(
                f"'{config.serve.host}' can be reached from other machines, and no token was made.",
                wanted="a token, or an address of this machine alone",
                hint="mia token add NAME; or mia serve --host 127.0.0.1",
            )
        service = Service(config)
        app = create_app(service)
        address = _address(listening)
        service.durable.listens_at(address)
        everywhere = " and every other address of this machine" if _is_any(listening) else ""
        output.note(f"MIA listens at {address}{everywhere}   (dashboard; /docs, /v1, /mcp)   home: {Path(config.home)}")
        if not gate.closed:
            output.note("Whoever is on this machine may ask; `mia token add NAME` asks for a token.")
        try:
            _server(app, service).run(sockets=[listening])
        except SystemExit:
            # It could not start; why is told as every other error of ours is.
            if app.state.trouble is not None:
                raise app.state.trouble from None
            raise
    finally:
        listening.close()


def _server(app: FastAPI, service: Service) -> uvicorn.Server:
    """It says what its end waits for, and can be ended at once."""
    import logging

    import uvicorn

    from mia.service.wire import PunctualProtocol

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit and sig == signal.SIGINT:
                output.note("Stopped at once.")
                # As safe as a kill: what was acknowledged is on the disk, and the next start goes on from there.
                os._exit(130)
            super().handle_exit(sig, frame)
            output.warn(_ending(service))

    # Faults are logged by our own middleware, without secrets; the rest is what clients do wrong.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return Server(
        uvicorn.Config(
            app,
            http=PunctualProtocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE,
            timeout_keep_alive=30,
            h11_max_incomplete_event_size=64 * 1024,
            ws="none",
        )
    )


def _ending(service: Service) -> str:
    """What the end of a server waits for."""
    asked = service.live.under_way
    questions = f"{output.plural(asked, 'question')} under way (for {GRACE} s at most) and " if asked else ""
    return f"Finishing {questions}what is being written; Ctrl-C again stops at once. Jobs go on with the next start."


def _listen(host: str, port: int) -> socket.socket:
    """Raises ConfigError for an address that cannot be listened at."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(2048)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"something listens at port {port} already.", hint="mia serve --port 0, or end the other one"
            ) from error
        raise ConfigError(
            f"cannot listen at '{host}', port {port}: {error.strerror or error}.", hint="mia serve --host 127.0.0.1"
        ) from error
    return listening


def _is_any(listening: socket.socket) -> bool:
    """Whether it listens at all addresses, and so at none that could be typed."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_unspecified


def _address(listening: socket.socket) -> str:
    """One at which this machine reaches it."""
    host, port = listening.getsockname()[:2]
    if _is_any(listening):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
