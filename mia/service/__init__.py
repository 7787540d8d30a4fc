"""`mia serve`: one process, one port, every door (docs/service.md)."""
