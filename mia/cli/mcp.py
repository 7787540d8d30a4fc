"""`mia mcp`: MIA as a tool of one agent program, over stdin and stdout."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import typer

from mia.cli import options, output
from mia.errors import HomeTaken, require


def mcp(
    context: typer.Context,
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
    """Speak the Model Context Protocol over stdin and stdout, to the agent program that starts this.

    It ends with stdin. A running `mia serve` speaks the same at /mcp of its address, for many programs at once.
    """
    require("mcp", extra="service", purpose="`mia mcp`")
    from mia.cli.embedded import embedded_default
    from mia.cli.index import announce_first_use
    from mia.service.core import Service
    from mia.service.mcp.server import serve_stdio

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
        | {"learn.enabled": learn}
    )
    config = embedded_default(config) or config
    announce_first_use(config)
    try:
        service = Service(config)
    except HomeTaken as error:
        held_by_server = f'give your agent program what runs there: {{"type": "http", "url": "{error.address}/mcp"}}'
        one_for_all = "end it; or have one `mia serve` run in this home, and give all programs its /mcp"
        raise HomeTaken(
            error.got,
            pid=error.pid,
            address=error.address,
            wanted="one process in a home at a time; a running `mia serve` speaks the same, at /mcp of its address",
            hint=f"{held_by_server if error.address else one_for_all}; or work apart from it: mia --home ELSEWHERE mcp",
        ) from error
    output.note(f"MIA speaks the Model Context Protocol on stdin and stdout.   home: {Path(config.home)}")
    # The thread that reads stdin cannot be broken off; what was accepted is on the disk, so that nothing is lost.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    asyncio.run(serve_stdio(service))
