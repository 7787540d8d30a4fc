"""The golden vectors: what verl and TRL gave when `make_golden.py` last ran."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from parity.cases import Case, Outcome

DATA = Path(__file__).parents[1] / "data"
OBJECTIVE = DATA / "learn_golden_objective.json"
ADVANTAGES = DATA / "learn_golden_advantages.json"

VERL_SEEDS = range(12)
TRL_SEEDS = range(100, 108)
ADVANTAGE_SEEDS = range(6)

TOLERANCE = 1e-10
"""The numbers are recorded with twelve digits."""
SHARE_TOLERANCE = 1e-6
"""Both packages take the shares of clipped tokens in float32."""


def objective(package: str) -> list[tuple[Case, Outcome]]:
    """`package`: "verl" or "trl"."""
    content = json.loads(OBJECTIVE.read_text(encoding="utf-8"))
    return [(Case(**entry["case"]), entry["outcome"]) for entry in content[package]]


def advantages() -> list[dict[str, Any]]:
    """Each with rewards, groups, divide, epsilon, and the values that verl gives."""
    entries: list[dict[str, Any]] = json.loads(ADVANTAGES.read_text(encoding="utf-8"))["verl"]
    return entries


def entry(case: Case, outcome: Outcome) -> dict[str, Any]:
    return {"case": asdict(case), "outcome": {name: _rounded(value) for name, value in outcome.items()}}


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else float(f"{value:.12g}")


def differences(one: Outcome, other: Outcome, *, tolerance: float = TOLERANCE) -> list[str]:
    """What differs by more than `tolerance` (shares of clipped tokens: by more than theirs), relative to numbers above
    1 and absolute below; empty if nothing does."""
    found = [f"{name} is in one of them only" for name in sorted(one.keys() ^ other.keys())]
    for name in sorted(one.keys() & other.keys()):
        first, second = (torch.tensor(side[name], dtype=torch.float64) for side in (one, other))
        if first.shape != second.shape:
            found.append(f"{name}: shapes {list(first.shape)} and {list(second.shape)}")
            continue
        worst = ((first - second).abs() / second.abs().clamp(min=1)).nan_to_num(nan=float("inf")).max().item()
        if worst > (SHARE_TOLERANCE if "clipped" in name else tolerance):
            found.append(f"{name}: differs by {worst:.3g}")
    return found
