"""MIA: a research agent that learns from its own past. See README.md."""

__version__ = "0.1.0"
