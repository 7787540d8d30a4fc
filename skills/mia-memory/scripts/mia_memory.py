#!/usr/bin/env python3
"""Recall, remember and judge, in MIA's memory: over HTTP where `mia serve` runs, else by the program `mia`.

Plain Python, no package. Prints JSON; what goes wrong is told on stderr, with exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

DEFAULT_URL = "http://127.0.0.1:8321"
VERSION = "2026-07-28"
"""The revision of the Model Context Protocol that is spoken: one request, one reply."""
SECONDS = 60
FOUND = 4
"""Memories that the program is asked for."""
FLOOR = 0.5
"""The program finds the most similar ones, however unlike: below this similarity they are of no use."""


class Trouble(Exception):
    """What went wrong, and what to do about it."""


class NoServer(Exception):
    """Nothing listens there."""


def main() -> int:
    arguments = _parser().parse_args()
    url = os.environ.get("MIA_URL", "")
    try:
        try:
            found = _ask_server(url or DEFAULT_URL, *_call(arguments))
        except NoServer:
            if url:
                raise Trouble(f"nothing listens at {url}. Start `mia serve`, or unset MIA_URL.") from None
            found = _ask_program(arguments)
    except Trouble as trouble:
        sys.stderr.write(f"{trouble}\n")
        return 1
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="MIA's memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    recall = commands.add_parser("recall", help="what was tried before for a question like this one")
    recall.add_argument("text", help="the question, in its own words")
    remember = commands.add_parser("remember", help="keep what was tried, and how it came out")
    remember.add_argument("--question", required=True)
    remember.add_argument("--workflow", required=True, help="numbered steps: purpose (input → output)")
    remember.add_argument("--judgement", required=True, choices=("correct", "incorrect"))
    feedback = commands.add_parser("feedback", help="say whether an answer of MIA was right")
    feedback.add_argument("episode_id")
    right = feedback.add_mutually_exclusive_group(required=True)
    right.add_argument("--correct", action="store_true")
    right.add_argument("--incorrect", action="store_true")
    feedback.add_argument("--reason", default="", help="why, without the right answer in it")
    return parser


def _call(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The tool of the server, and what it takes."""
    if arguments.command == "recall":
        return "recall", {"text": arguments.text}
    if arguments.command == "remember":
        return "remember", {name: getattr(arguments, name) for name in ("question", "workflow", "judgement")}
    given = {"episode_id": arguments.episode_id, "correct": arguments.correct, "reason": arguments.reason}
    return "feedback", given


def _ask_server(url: str, tool: str, given: dict[str, Any]) -> Any:
    """What a tool of the server at /mcp gives. Raises NoServer, Trouble."""
    if not url.startswith(("http://", "https://")):
        raise Trouble(f"MIA_URL is no address: {url!r}. Set it to http://HOST:PORT.")
    protocol = "io.modelcontextprotocol/"
    meta = {f"{protocol}protocolVersion": VERSION, f"{protocol}clientCapabilities": {}}
    params = {"name": tool, "arguments": given, "_meta": meta}
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": VERSION,
        "Mcp-Method": "tools/call",
        "Mcp-Name": tool,
    }
    if token := os.environ.get("MIA_TOKEN", ""):
        headers["Authorization"] = f"Bearer {token}"
    if scope := os.environ.get("MIA_SCOPE", ""):
        headers["X-MIA-Scope"] = scope
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    request = urllib.request.Request(f"{url.rstrip('/')}/mcp", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            reply = _read(answer.read().decode(), answer.headers.get_content_type())
    except urllib.error.HTTPError as error:
        raise Trouble(_refusal(error)) from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ConnectionRefusedError):
            raise NoServer from None
        raise Trouble(f"{url} cannot be asked: {error.reason}.") from None
    except (OSError, ValueError) as error:
        raise Trouble(f"{url} answers nothing that can be read ({type(error).__name__}). Is it `mia serve`?") from None
    if "error" in reply:
        raise Trouble(reply["error"]["message"])
    if reply["result"].get("isError"):
        raise Trouble("\n".join(block.get("text", "") for block in reply["result"]["content"]))
    return reply["result"]["structuredContent"]


def _read(text: str, kind: str) -> dict[str, Any]:
    """The reply, bare or as the last event of a stream. Raises ValueError."""
    if kind == "text/event-stream":
        text = [line.removeprefix("data:") for line in text.splitlines() if line.startswith("data:")][-1]
    reply = json.loads(text)
    if not isinstance(reply, dict) or not reply.keys() & {"result", "error"}:
        raise ValueError("no reply")
    return reply


def _refusal(error: urllib.error.HTTPError) -> str:
    """What the server says of a request that it refuses."""
    try:
        told = json.loads(error.read())["error"]
        said = " ".join(str(told[part]) for part in ("message", "wanted", "hint") if told.get(part))
    except (ValueError, KeyError, TypeError):
        said = "it says nothing of why"
    return f"the server refuses (status {error.code}): {said}" + (" Set MIA_TOKEN." if error.code == 401 else "")


def _ask_program(arguments: argparse.Namespace) -> Any:
    """What the program `mia` gives, in the shape of the server's. Raises Trouble."""
    start = "Start `mia serve`."
    if arguments.command == "feedback":
        raise Trouble(f"feedback needs a server, and none runs at {DEFAULT_URL}. {start}")
    program = shutil.which("mia")
    if program is None:
        raise Trouble(f"no server runs at {DEFAULT_URL}, and there is no program `mia` on the PATH. {start}")
    scope = os.environ.get("MIA_SCOPE", "")
    command = [program, "memory", "search" if arguments.command == "recall" else "add", "--json"]
    command += ["--scope", scope] if scope else []
    if arguments.command == "recall":
        command += ["-k", str(FOUND), "--", arguments.text]
    else:
        command += [f"--{name}={getattr(arguments, name)}" for name in ("question", "workflow", "judgement")]
    ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if ran.returncode != 0:
        raise Trouble(ran.stderr.strip() or f"`mia` ended with status {ran.returncode}.")
    found = json.loads(ran.stdout)
    if arguments.command == "remember":
        return {"memory_id": found["id"], "state": found["state"], "workflow": found["workflow"]}
    told = ("id", "judgement", "question", "workflow", "uses", "wins")
    related = [one for one in found if one["similarity"] >= FLOOR]
    return {
        "memories": [{**{name: one["memory"][name] for name in told}, "score": one["similarity"]} for one in related]
    }


if __name__ == "__main__":
    sys.exit(main())
