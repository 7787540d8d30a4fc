"""The door for other agents: MIA as a server of the Model Context Protocol, over HTTP (`/mcp`) and stdio (`mia mcp`).

`tools.py` says what an agent can do, `resources.py` what it can read, `server.py` speaks the protocol, and `door.py`
loads it for the first who asks over HTTP.
"""
