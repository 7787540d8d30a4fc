"""How long it takes until something happens: `import mia` and `mia --help`, beside an empty Python.

    python benchmarks/startup.py [--json]

Medians over processes started in turn. Wanted: import at most 0.3 s, help at most 0.5 s, and no torch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import mia": [sys.executable, "-c", "import mia"],
    "import mia, whole line": [sys.executable, "-c", "import mia; mia.live, mia.build_team"],
    "mia --help": [sys.executable, "-m", "mia.cli.main", "--help"],
}
ROUNDS = 15


def measure() -> dict[str, Any]:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - begun)
    loaded = "import mia, sys; mia.live; print('torch' in sys.modules)"
    torch = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.strip()
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "torch_loaded": torch == "True",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    result = measure()
    if parser.parse_args().json:
        print(json.dumps(result, indent=2))
        return
    print(result["machine"])
    empty = result["seconds"]["python"]
    for name, seconds in result["seconds"].items():
        print(f"{name:<24}{seconds:.3f} s  ({seconds / empty:.1f} × an empty Python)")


if __name__ == "__main__":
    main()
