"""The curves of a training: loss and learning rate against tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mia.errors import LearnError, require


def draw(rows: Sequence[Mapping[str, float]], path: Path, *, chance: float) -> Path:
    """A PNG of the rows of `steps.read_metrics`; `chance`: the loss of a model that knows nothing.

    Raises MissingExtra without matplotlib, LearnError where there are no rows.
    """
    if not rows:
        raise LearnError("there are no metrics to draw.", wanted="a training that took some steps")
    require("matplotlib", extra="plots", purpose="the curves of a training")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    # A canvas of its own: no window, and nothing global.
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    tokens = [row["tokens"] / 1e6 for row in rows]
    above.plot(tokens, [row["loss"] for row in rows], color="tab:blue")
    above.axhline(chance, color="0.6", linestyle=":", label=f"a guess among all tokens: {chance:.2f}")
    above.set_yscale("log")
    above.set_ylabel("loss (nats a learned token)")
    above.legend(frameon=False)
    below.plot(tokens, [row["rate"] for row in rows], color="tab:orange")
    below.set_ylabel("learning rate")
    below.set_xlabel("tokens (millions, with those that are only read)")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return path
