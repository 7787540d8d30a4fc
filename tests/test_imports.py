"""What importing costs: nothing heavy, whatever is installed; and `mia` exports what it says."""

from __future__ import annotations

import subprocess
import sys

import mia

HEAVY = (
    "torch", "transformers", "model2vec", "openai", "httpx2", "tantivy", "trafilatura", "rich", "typer", "pypdf",
    "lxml", "ddgs",
)  # fmt: skip


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_mia_loads_nothing_heavy() -> None:
    assert not loaded_after("import mia") & set(HEAVY)


def test_the_line_loads_no_model_library() -> None:
    assert not loaded_after("import mia.episode, mia.team, mia.evals.run") & {
        "torch",
        "transformers",
        "openai",
        "tantivy",
    }


def test_the_command_line_loads_no_model_library() -> None:
    assert not loaded_after("import mia.cli.main") & {"torch", "transformers", "openai", "tantivy", "numpy"}


def test_every_exported_name_exists_and_is_sorted() -> None:
    assert list(mia.__all__) == sorted(mia.__all__)
    for name in mia.__all__:
        assert getattr(mia, name) is not None, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(mia, "no_such_name")


def test_python_m_mia_is_the_program() -> None:
    told = subprocess.run([sys.executable, "-m", "mia", "--version"], capture_output=True, text=True)
    assert (told.returncode, told.stdout.strip()) == (0, f"mia {mia.__version__}")
    refused = subprocess.run([sys.executable, "-m", "mia", "nonsense"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "nonsense" in refused.stderr
