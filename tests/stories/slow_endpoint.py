"""A chat endpoint of its own process for stories: plans, searches once, answers, and finds nothing missing.

    slow_endpoint.py [SECONDS]

SECONDS: that each answer takes (0.02); from SIGUSR1 on none.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPLIES = {
    "Write the plan": "<think>t</think>\n1. Search for the moon.",
    "yes (a supplementary plan": "<think>t</think>\nno",
    "<tool_response>": "<think>t</think>\n<answer>Huygens</answer>",
    "<question>": '<think>t</think>\n<tool_call>{"name": "search", "arguments": {"query_list": ["moon"]}}</tool_call>',
}
COMPRESSED = "1. Look for the moon (its name → its page)\n2. Read who found it (the page → a name)"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seconds = 0.02

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        last = str(request["messages"][-1]["content"])
        time.sleep(self.seconds)
        compress = "workflow" in last and "Write the plan" not in last
        text = COMPRESSED if compress else next(reply for mark, reply in REPLIES.items() if mark in last)
        message = {"role": "assistant", "content": text}
        page = {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
        body = json.dumps(page).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def hurry(*_: object) -> None:
    Handler.seconds = 0.0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Handler.seconds = float(sys.argv[1])
    signal.signal(signal.SIGUSR1, hurry)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
