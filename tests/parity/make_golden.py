"""Write the golden vectors: `PYTHONPATH=tests python -m parity.make_golden`, in the environment of `make test-parity`.

Inputs are seeded; outcomes are those of the installed verl and TRL, which are named in the files. The ordinary tests
compare ours with these files; tests/parity compares the files with the installed packages.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from parity import recorded, references
from parity.cases import BRANCHES, draw, draw_groups, fired


def main() -> None:
    verl = [draw(seed) for seed in recorded.VERL_SEEDS]
    trl = [draw(seed, far=False) for seed in recorded.TRL_SEEDS]
    reached = sum((fired(case) for case in verl), Counter())
    assert not set(BRANCHES) - set(reached), f"no case for: {set(BRANCHES) - set(reached)}"
    _write(
        recorded.OBJECTIVE,
        {
            "verl": [recorded.entry(case, references.verl(case)) for case in verl],
            "trl": [recorded.entry(case, references.trl(case)) for case in trl],
        },
    )
    _write(recorded.ADVANTAGES, {"verl": [_advantages(seed) for seed in recorded.ADVANTAGE_SEEDS]})


def _advantages(seed: int) -> dict[str, Any]:
    rewards, groups = draw_groups(seed)
    divide, epsilon = seed % 2 == 0, (1e-6, 0.1)[seed % 4 // 2]
    values = references.verl_advantages(rewards, groups, divide=divide, epsilon=epsilon)
    return {"rewards": rewards, "groups": groups, "divide": divide, "epsilon": epsilon, "values": values}


def _write(path: Path, entries: dict[str, list[dict[str, Any]]]) -> None:
    """One entry on a line, so that a change is seen where it is."""
    parts = [f'"made with": {json.dumps(references.versions())}']
    for package, cases in entries.items():
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        parts.append(f'"{package}": [\n{lines}\n]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
