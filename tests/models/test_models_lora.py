"""Adapters of several rows at once, against peft with one adapter at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from tiny_model import write_adapter, write_model

from mia.errors import ConfigError
from mia.models.weights import Weights, silenced

LENGTH = 9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


def alone(base: str, folder: Path | None, ids: Any) -> Any:
    """Logits as peft has them, without anything of ours."""
    with silenced(transformers), torch.inference_mode():
        network = transformers.AutoModelForCausalLM.from_pretrained(base)
        if folder is not None:
            network = peft.PeftModel.from_pretrained(network, folder)
        return network.eval()(input_ids=ids).logits


def together(weights: Weights, ids: Any, adapters: Sequence[str]) -> Any:
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    with torch.inference_mode():
        return weights.forward(ids, positions, keep=ids.shape[1], adapters=adapters)


def some_ids(rows: int, length: int = LENGTH) -> Any:
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(rows))


def write_strange(base: str, folder: Path, **changes: Any) -> Path:
    """An adapter with layers of other kinds, without the base's embeddings, which peft saves too."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        write_adapter(base, folder, seed=4, **changes)
    file = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: one for name, one in tensors.items() if "base_layer" not in name}, file)
    return folder


@pytest.mark.parametrize("length", [1, LENGTH, 120])
def test_each_row_is_answered_as_by_its_own_adapter_alone(base: str, tmp_path: Path, length: int) -> None:
    """Adapters of other ranks, scalings and layers; 1 and 9 tokens go side by side, 960 adapter by adapter."""
    folders = {
        "small": write_adapter(base, tmp_path / "small", seed=1, r=2, lora_alpha=7),
        "large": write_adapter(base, tmp_path / "large", seed=2, r=8, use_rslora=True),
        "elsewhere": write_adapter(
            base, tmp_path / "elsewhere", seed=3, target_modules=["v_proj", "up_proj", "q_proj"]
        ),
    }
    weights = Weights.load(base)
    for name, folder in folders.items():
        weights.load_adapter(name, folder)
    names = ["small", "", "large", "large", "elsewhere", "", "small", "elsewhere"]
    ids = some_ids(len(names), length)
    found = together(weights, ids, names)
    for row, name in enumerate(names):
        torch.testing.assert_close(
            found[row : row + 1], alone(base, folders.get(name), ids[row : row + 1]), atol=1e-4, rtol=1e-4
        )
    # All alike, none at all, and back to several, whatever came before.
    torch.testing.assert_close(
        together(weights, ids, ["large"] * 8), alone(base, folders["large"], ids), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(together(weights, ids, ()), alone(base, None, ids), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together(weights, ids, names), found)


def test_what_was_unloaded_is_gone_and_what_stays_is_as_it_was(base: str, tmp_path: Path) -> None:
    folders = {name: write_adapter(base, tmp_path / name, seed=seed) for seed, name in enumerate("abc", start=1)}
    weights = Weights.load(base)
    weights.load_adapter("a", folders["a"])
    weights.load_adapter("b", folders["b"])
    ids = some_ids(3)
    before = together(weights, ids, ["a", "b", ""])
    weights.unload_adapter("a")
    weights.load_adapter("c", folders["c"])
    after = together(weights, ids, ["c", "b", ""])
    torch.testing.assert_close(after[1:], before[1:])
    torch.testing.assert_close(after[:1], alone(base, folders["c"], ids[:1]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"target_modules": ["embed_tokens", "q_proj"]}])
def test_layers_that_are_no_plain_lora_are_left_to_peft(base: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    strange, plain = write_strange(base, tmp_path / "s", **changes), write_adapter(base, tmp_path / "p", seed=5)
    weights = Weights.load(base)
    weights.load_adapter("strange", strange)
    weights.load_adapter("plain", plain)
    ids = some_ids(4)
    for name, folder in (("strange", strange), ("plain", plain), ("", None), ("strange", strange)):
        torch.testing.assert_close(together(weights, ids, [name] * 4), alone(base, folder, ids), atol=1e-4, rtol=1e-4)


def test_embeddings_and_plain_layers_in_one_batch(base: str, tmp_path: Path) -> None:
    strange = write_strange(base, tmp_path / "s", target_modules=["embed_tokens", "q_proj"])
    plain = write_adapter(base, tmp_path / "p", seed=5)
    weights = Weights.load(base)
    weights.load_adapter("strange", strange)
    weights.load_adapter("plain", plain)
    ids = some_ids(3)
    found = together(weights, ids, ["plain", "strange", ""])
    for row, folder in enumerate((plain, strange, None)):
        torch.testing.assert_close(found[row : row + 1], alone(base, folder, ids[row : row + 1]), atol=1e-4, rtol=1e-4)


def test_an_adapter_that_cannot_be_loaded_leaves_the_others_as_they_were(base: str, tmp_path: Path) -> None:
    good = write_adapter(base, tmp_path / "good", seed=6)
    bad = write_adapter(base, tmp_path / "bad", seed=7)
    (bad / "adapter_model.safetensors").write_bytes(b"torn")
    weights = Weights.load(base)
    weights.load_adapter("good", good)
    ids = some_ids(2)
    before = together(weights, ids, ["good", ""])
    with pytest.raises(ConfigError):
        weights.load_adapter("bad", bad)
    torch.testing.assert_close(together(weights, ids, ["good", ""]), before)
