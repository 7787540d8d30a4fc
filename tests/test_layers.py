"""The floors of the house, held by a test: a floor imports lower floors only (docs/architecture.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import mia

ROOT = Path(mia.__file__).parent

FLOORS: list[list[str]] = [
    ["errors", "types", "config", "events", "prompt", "redaction", "scope", "statistics", "transcript"],
    ["models", "embeddings", "store", "search", "tools", "world"],
    ["memory", "agents", "judges", "reader"],
    ["episode", "stages", "team"],
    ["evals", "erasure", "learn"],
    ["service", "cli"],
    ["__main__"],
]
ORDER_WITHIN = [
    ["models", "embeddings"],
    ["models", "search", "tools"],
    ["models", "world"],
    ["embeddings", "store"],
    ["embeddings", "search"],
    ["team", "stages", "episode"],
    ["evals", "erasure"],
    ["learn", "erasure"],
    ["service", "cli"],
]
"""Packages on one floor that may import each other, later ones earlier ones. All of floor 1 may, without cycles."""


def floor(package: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if package in names)


def imports(path: Path) -> set[str]:
    """The parts of `mia` that a file imports, also inside functions; those for type checkers alone are left out."""
    found: set[str] = set()

    class Visitor(ast.NodeVisitor):
        def visit_If(self, node: ast.If) -> None:
            if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
                self.generic_visit(node)

        def visit_Import(self, node: ast.Import) -> None:
            found.update(alias.name for alias in node.names)

        def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)

    Visitor().visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name.split(".")[1] for name in found if name.startswith("mia.")} & {
        name for names in FLOORS for name in names
    }


def test_every_part_has_a_floor() -> None:
    parts = {path.stem for path in ROOT.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert parts - {"__init__", "__pycache__", "py"} <= {name for names in FLOORS for name in names}


def test_floors_import_downwards_only() -> None:
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for other in imports(path) - {own}:
            if floor(other) > floor(own):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}, which stands above it")
            elif floor(other) == floor(own) != 0 and not any(
                own in order and other in order and order.index(other) < order.index(own) for order in ORDER_WITHIN
            ):
                wrong.append(f"{path.relative_to(ROOT)} imports {other}, which stands beside it")
    assert not wrong, "\n".join(wrong)
