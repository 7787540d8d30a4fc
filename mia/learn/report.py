"""What a training leaves for people to read: report.md, and curves.png where matplotlib is installed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mia.errors import LearnError, require
from mia.learn.stages import Held, StageResult
from mia.statistics import Interval

_ELSEWHERE = {"reader": "texts that chose nothing (`benchmarks/reader_rl.py`, `mia eval ruler`)"}
"""Stage → where else its weights are measured."""
_WINDOW = 10
"""Steps that a curve is smoothed over, and that the first and the last row of the table are the mean of."""


def percent(interval: Interval | None) -> str:
    """ "61.2 % (54.1 to 68.3)"."""
    if interval is None:
        return "–"
    return f"{interval.estimate:.1%} ({100 * interval.low:.1f} to {100 * interval.high:.1f})".replace("%", " %", 1)


def points(interval: Interval | None) -> str:
    """ "+4.1 (+1.0 to +7.2)", in percentage points."""
    if interval is None:
        return "–"
    return " ".join((f"{100 * interval.estimate:+.1f}", f"({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"))


def in_short(result: StageResult) -> str:
    """One sentence: what the training brought."""
    before, best = result.before, result.best
    if before is None or best is None:
        return f"{result.steps} steps of {result.stage}; no exam was held, so nothing says what they brought."
    if best.step == before.step:
        return (
            f"{result.steps} steps of {result.stage} brought nothing: no exam went better than the one before them, "
            f"{percent(before.accuracy)}."
        )
    return (
        f"{result.stage}: {percent(before.accuracy)} before, {percent(best.accuracy)} after {best.step} steps; in "
        f"pairs {points(best.over(before))} points."
    )


def write_report(
    folder: Path, result: StageResult, rows: Sequence[Mapping[str, Any]], page: Mapping[str, Any], command: str
) -> Path:
    """`rows`: of `read_metrics`; `page`: what decided the training; `command`: what was typed. Whole or not at all."""
    path = folder / "report.md"
    parts = [
        f"# Training of the {result.stage.capitalize()}",
        in_short(result),
        f"```\n{command}\n```",
        _exams(result),
        _steps(rows),
        f"![curves](curves.png)\n\nThe weights are in `{result.weights.name}/`. The whole took "
        f"{result.seconds / 60:.1f} minutes.",
        _settings(page),
    ]
    fresh = path.with_suffix(".tmp")
    fresh.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    fresh.replace(path)
    return path


def _exams(result: StageResult) -> str:
    if not result.exams:
        return ""
    before = result.exams[0]
    lines = [
        "## Exams",
        "Greedy, always the same questions, none of which a step saw. 95 % intervals over worlds (or questions); gains "
        "in pairs with the exam before the first step.",
        "",
        "| after step | correct | gain in points | |",
        "|---:|---|---|---|",
    ]
    for held in result.exams:
        gain = points(held.over(before)) if held is not before else ""
        kept = "kept" if held.step == result.best_step else ""
        lines.append(f"| {held.step} | {percent(held.accuracy)} | {gain} | {kept} |")
    lines += [
        "",
        "The weights were chosen by these very exams, so the best of them flatters a little: what they are worth is "
        f"measured on {_ELSEWHERE.get(result.stage, 'worlds that chose nothing (`mia world ladder`)')}.",
    ]
    if result.ended_early:
        lines.append("The training ended early: exams had been no better for as long as it was told to bear.")
    return "\n".join(lines)


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    shown: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "reward": lambda row: row.get("reward"),
        "correct": lambda row: row.get("accuracy"),
        "replanned": lambda row: row.get("replans"),
        "chunks read": lambda row: row.get("chunks"),
        "memory cut": lambda row: row.get("cut"),
        **{f"reward: {name}": _part(name) for name in sorted({name for row in rows for name in row.get("parts", {})})},
        "seconds a step": lambda row: row.get("seconds"),
    }
    lines = [
        "## Steps",
        f"Sampled rollouts; means of the first and of the last {min(_WINDOW, len(rows))} steps.",
        "",
        "| | first | last |",
        "|---|---:|---:|",
    ]
    for name, value in shown.items():
        if all(value(row) is None for row in rows):
            continue
        first, last = (_shown([value(row) for row in some]) for some in (rows[:_WINDOW], rows[-_WINDOW:]))
        lines.append(f"| {name} | {first} | {last} |")
    dropped: Counter[str] = Counter()
    for row in rows:
        dropped.update(row.get("dropped", {}))
    rollouts = sum(row.get("rollouts", 0) for row in rows)
    lines += ["", f"{rollouts:,} rollouts got a reward."]
    if dropped:
        lines.append("Nothing was learnt from: " + "; ".join(f"{why}: {n:,}" for why, n in dropped.most_common()) + ".")
    return "\n".join(lines)


def _part(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda row: row.get("parts", {}).get(name)


def _shown(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{math.fsum(known) / len(known):.3f}" if known else "–"


def _settings(page: Mapping[str, Any]) -> str:
    lines = ["## Settings", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_value(value)} |" for name, value in _named(page)]
    return "\n".join(lines)


def _named(page: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    named: list[tuple[str, Any]] = []
    for name, value in page.items():
        named += _named(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return named


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} of them"
    return str(value).replace("|", "\\|")


# ── the picture ───────────────────────────────────────────────────────────────────────────────────────────────────


def draw(rows: Sequence[Mapping[str, Any]], exams: Sequence[Held], path: Path) -> Path:
    """A PNG: exams, rewards, and what else the steps tell. Raises MissingExtra without matplotlib, LearnError where
    there are no steps."""
    if not rows:
        raise LearnError("there are no steps to draw.", wanted="a training that took some")
    require("matplotlib", extra="plots", purpose="the curves of a training")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = [
        name for name in ("divergence", "entropy", "gradient_norm") if any(_is_number(row.get(name)) for row in rows)
    ]
    figure = Figure(figsize=(8, 5 + 1.3 * len(curves)), layout="constrained")
    # A canvas of its own: no window, and nothing global.
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 + len(curves), 1, sharex=True, height_ratios=(2, 2, *(1 for _ in curves)))
    _draw_exams(panels[0], exams)
    for name, colour in (("reward", "tab:blue"), ("accuracy", "tab:green")):
        _draw_curve(panels[1], rows, name, colour, label={"accuracy": "correct"}.get(name, name))
    panels[1].set_ylabel("sampled")
    panels[1].legend(frameon=False)
    for panel, name in zip(panels[2:], curves, strict=True):
        _draw_curve(panel, rows, name, "tab:orange")
        panel.set_ylabel({"divergence": "KL to the base", "gradient_norm": "gradient norm"}.get(name, name))
    panels[-1].set_xlabel("step")
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return path


def _draw_exams(panel: Any, exams: Sequence[Held]) -> None:
    held = [(one.step, one.accuracy) for one in exams]
    known = [(step, interval) for step, interval in held if interval is not None]
    steps, intervals = [step for step, _ in known], [interval for _, interval in known]
    panel.errorbar(
        steps,
        [one.estimate for one in intervals],
        yerr=[[one.estimate - one.low for one in intervals], [one.high - one.estimate for one in intervals]],
        color="tab:purple",
        marker="o",
        capsize=3,
    )
    panel.set_ylabel("exam: correct (95 %)")
    if not known:
        panel.text(0.5, 0.5, "no exam was held", ha="center", va="center", transform=panel.transAxes, color="0.5")


def _draw_curve(panel: Any, rows: Sequence[Mapping[str, Any]], name: str, colour: str, label: str = "") -> None:
    """What was measured, faint, and its mean over the last steps."""
    known = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
    steps, values = [step for step, _ in known], [value for _, value in known]
    smooth = [_smoothed(values[max(0, end - _WINDOW) : end]) for end in range(1, len(values) + 1)]
    panel.plot(steps, values, color=colour, alpha=0.25)
    panel.plot(steps, smooth, color=colour, label=label)


def _smoothed(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
