"""Whoever hangs up cancels the work, down to the call of the model."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest
from fake_endpoint import drips
from serving import Endpoint, Serving

pytest.importorskip("fastapi", reason="the extra `service` is not installed")


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_cancels_the_call_of_the_model(serve: Serving, tmp_path: Path, stream: bool) -> None:
    with Endpoint().running() as endpoint:
        server = serve(tmp_path, endpoint)
        endpoint.behave = drips(0.02)
        body = {"question": "Who found the moon?", "stream": stream}
        client = httpx2.Client(base_url=server.url, timeout=30 if stream else 1.5)
        with suppress(httpx2.ReadTimeout), client.stream("POST", "/v1/ask", json=body) as reply:
            for line in reply.iter_lines():
                if '"stage": "plan"' in line:
                    server.wait_for(lambda: endpoint.server.active)
                    break
        client.close()
        assert len(endpoint.server.requests) == 1
        begun = time.monotonic()
        server.wait_for(lambda: not endpoint.server.active, 10)
        assert time.monotonic() - begun < 5
        server.wait_for(lambda: "mia_asks_under_way 0.0" in server.client.get("/metrics").text, 10)
        assert server.get("/v1/queue")["accepted_total"] == 0
        assert server.get("/v1/episodes")["episodes"] == []
