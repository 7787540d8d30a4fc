"""LoRA adapters of a network: loaded and checked by peft, applied here, a different one to each row of a batch.

A layer's part for the rows of an adapter is x Aᵀ Bᵀ · scaling (Hu et al. 2021). peft's own way through a batch of
several adapters visits each of them in each layer, and its way from one adapter to the next visits every module of the
network; with an adapter for every other row that costs more than the network does. Here few tokens, as when replies are
sampled, take two products with the matrices of all adapters side by side, of which a mask keeps each row's own; many
tokens, as in prompts, go adapter by adapter. Layers that are no plain LoRA of a linear layer (embeddings, DoRA, …) are
left to peft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mia.errors import require

BASE = "__base__"
"""The name that peft gives to "no adapter" in a batch of several."""
_SIDE_BY_SIDE = 512
"""Tokens in a batch up to which all adapters are multiplied side by side."""


@dataclass(frozen=True)
class _Wanted:
    """Which adapter each row of a batch wants, by peft's names."""

    rows: Mapping[str, list[int]]
    """Of each that any row wants."""
    everywhere: bool
    """One adapter for all rows."""


class LoraLayers:
    """The LoRA layers of a network. For one thread, the network's own."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._peft: Any = require("peft", extra="local", purpose="LoRA adapters")
        self._tuner: Any = None
        self._others: list[Any] = []
        self._hooked: set[int] = set()
        self._plain_ids: frozenset[int] = frozenset()
        self._chosen: tuple[str, ...] = ()
        self._wanted: _Wanted | None = None
        self._side_by_side: dict[tuple[int, tuple[str, ...]], tuple[Any, Any, tuple[int, ...]]] = {}
        self._masks: dict[tuple[str, ...], Any] = {}

    def load(self, name: str, folder: Path) -> None:
        """Load what peft saved, under a name. Raises what peft does; nothing is loaded then."""
        try:
            if self._tuner is None:
                # Not `from_pretrained`: failing in the middle, it would leave its layers in the network.
                config = self._peft.PeftConfig.from_pretrained(folder)
                self._tuner = self._peft.PeftModel(self._network, config, adapter_name=name)
            self._tuner.load_adapter(folder, adapter_name=name)
        except BaseException:
            if self._tuner is not None and name in self._tuner.peft_config:
                self._tuner.delete_adapter(name)
            self._look()
            raise
        self._tuner.eval()
        self._look()

    def unload(self, name: str) -> None:
        self._tuner.base_model.set_adapter([])
        self._tuner.delete_adapter(name)
        self._look()

    def choose(self, names: Sequence[str]) -> None:
        """For the next calls of the network: an adapter for each row, `BASE` for none; empty: none at all."""
        chosen = tuple(names)
        if chosen == self._chosen or self._tuner is None:
            return
        self._chosen = chosen
        distinct = tuple(sorted(set(chosen) - {BASE}))
        rows = {one: [number for number, name in enumerate(chosen) if name == one] for one in distinct}
        everywhere = len(distinct) == 1 and BASE not in chosen
        self._wanted = _Wanted(rows, everywhere) if distinct else None
        self._masks.clear()
        for module in self._others:
            module._disable_adapters = not distinct
            if everywhere and list(module.active_adapters) != list(distinct):
                module.set_adapter(list(distinct), inference_mode=True)

    def _look(self) -> None:
        """After a change: which layers there are, and of what kind."""
        lora = self._peft.tuners.lora
        layers = [module for module in self._network.modules() if isinstance(module, lora.LoraLayer)]
        self._plain_ids = frozenset(id(module) for module in layers if _is_plain(module, lora.Linear))
        self._others = [module for module in layers if id(module) not in self._plain_ids]
        for module in layers:
            module._disable_adapters = True
            if id(module) not in self._hooked:
                self._hooked.add(id(module))
                module.register_forward_hook(self._add)
                module.register_forward_pre_hook(self._name, with_kwargs=True)
        self._side_by_side.clear()
        self._chosen, self._wanted = (), None

    # ── in the network's layers ───────────────────────────────────────────────────────────────────────────────────

    def _name(self, module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Tell a layer that is peft's which adapter each row wants, where they differ."""
        if self._wanted is None or self._wanted.everywhere or id(module) in self._plain_ids:
            return None
        options["adapter_names"] = list(self._chosen)
        return arguments, options

    def _add(self, module: Any, arguments: Any, output: Any) -> Any:
        """Add to a plain layer's output what the adapters of its rows make of its input."""
        wanted = self._wanted
        if wanted is None or id(module) not in self._plain_ids:
            return None
        names = [name for name in wanted.rows if name in module.lora_A]
        if not names:
            return None
        given = arguments[0]
        if wanted.everywhere:
            return output + _product(module, names[0], given).to(output.dtype)
        if given.dim() == 3 and given.shape[0] * given.shape[1] <= _SIDE_BY_SIDE:
            return output + self._all(module, tuple(names), given).to(output.dtype)
        for name in names:
            rows = wanted.rows[name]
            output[rows, ...] += _product(module, name, given[rows, ...]).to(output.dtype)
        return output

    def _all(self, module: Any, names: tuple[str, ...], given: Any) -> Any:
        """What the adapters make of an input [rows, queries, features], by one product for all."""
        import torch

        key = (id(module), names)
        if key not in self._side_by_side:
            ins = [module.lora_A[name].weight for name in names]
            outs = [module.lora_B[name].weight * module.scaling[name] for name in names]
            self._side_by_side[key] = torch.cat(ins), torch.cat(outs, dim=1), tuple(len(one) for one in ins)
        first, second, ranks = self._side_by_side[key]
        return (given.to(first.dtype) @ first.T * self._mask(names, ranks, given.shape[0], first)) @ second.T

    def _mask(self, names: tuple[str, ...], ranks: tuple[int, ...], rows: int, like: Any) -> Any:
        """[rows, 1, all ranks]: 1 where a rank is of the row's adapter."""
        import torch

        if names not in self._masks:
            assert self._wanted is not None
            mask = torch.zeros(rows, 1, sum(ranks), dtype=like.dtype, device=like.device)
            start = 0
            for name, rank in zip(names, ranks, strict=True):
                mask[self._wanted.rows[name], :, start : start + rank] = 1
                start += rank
            self._masks[names] = mask
        return self._masks[names]


def _product(module: Any, name: str, given: Any) -> Any:
    down, up = module.lora_A[name], module.lora_B[name]
    return up(down(given.to(down.weight.dtype))) * module.scaling[name]


def _is_plain(module: Any, linear: Any) -> bool:
    """Whether all adapters of a layer are x Aᵀ Bᵀ · scaling."""
    return (
        isinstance(module, linear)
        and not module.lora_variant
        and all(up.bias is None for up in module.lora_B.values())
        and not any(module.lora_bias.values())
    )
