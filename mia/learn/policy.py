"""The network that learns: a causal language model with an adapter to train, or with all its weights.

Logits are computed where a token was learned and nowhere else, a few at a time (`mia.learn.logprobs`). The reference of
the divergence is the same network with its adapter off, or a frozen copy where all weights learn.

Dropout is off, in training too: the probabilities that a token was sampled with and those that it is learnt with are to
be the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mia.config import LearnSettings
from mia.errors import ConfigError, LearnError, require
from mia.learn.batching import Lot
from mia.models.local import EMBEDDED
from mia.models.weights import Weights, silenced

if TYPE_CHECKING:
    import torch

_ADAPTER = "default"
"""The name of the adapter within peft."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """A lot on the device, as `Lot` describes it."""

    inputs: torch.Tensor
    seen: torch.Tensor
    targets: torch.Tensor
    mask: torch.Tensor
    sampled: torch.Tensor
    advantages: torch.Tensor
    counts: torch.Tensor


class Policy:
    """Logprobs of what was sampled, with their gradients; and the weights as files."""

    def __init__(self, weights: Weights, network: Any, reference: Any, tuner: Any, base: str) -> None:
        """`reference`: a frozen network; None: none, or the tuner's without its adapter. `tuner`: what peft made of the
        network; None: all weights learn. `base`: the digest of the weights that the learning began from."""
        self.base = base
        self.limit = weights.window
        self.device = network.device
        self.vocabulary = int(network.get_input_embeddings().weight.shape[0])
        self.parameters: dict[str, torch.Tensor] = {
            name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad
        }
        """Those that learn, by name."""
        self._weights = weights
        self._network = network
        self._reference = reference
        self._tuner = tuner
        self._plain = self._has_plain_head()

    @classmethod
    def open(
        cls, model: str, settings: LearnSettings, *, device: str = "cpu", adapter: Path | None = None, seed: int = 0
    ) -> Policy:
        """Read the base model (empty: the embedded one), and begin from `adapter`: the folder of an adapter, or of
        whole weights where `settings.weights` is "full"; None: from the base itself. `seed` decides the first weights
        of a new adapter; the rank and alpha of one that is there already are its own.

        Raises ConfigError for what cannot be read, and for an adapter that does not fit the base; MissingExtra.
        """
        full = settings.weights == "full"
        weights = Weights.load(model or str(EMBEDDED), device=device, exact=full)
        base = weights.digest()
        if full:
            return cls._open_full(weights, base, adapter, kept=settings.kl > 0)
        return cls(weights, weights.network, None, _tuned(weights, settings, adapter, seed), base)

    @classmethod
    def _open_full(cls, weights: Weights, base: str, begin: Path | None, *, kept: bool) -> Policy:
        reference = None
        if begin is not None:
            fresh = Weights.load(str(begin), device=str(weights.device), exact=True)
            weights.check_fits(fresh)
            stated = getattr(fresh.network.config, "mia_base", base)
            if stated != base:
                raise ConfigError(
                    f"the weights in '{begin}' were trained from another base than '{weights.folder}'.",
                    wanted=f"a base whose weights have the digest {stated}, not {base}",
                )
            reference, network = weights.network, fresh.network
        else:
            network = weights.network
            reference = copy.deepcopy(network) if kept else None
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        return cls(weights, network, reference if kept else None, None, base)

    @property
    def tokenizer(self) -> Any:
        """The base model's, as transformers made it."""
        return self._weights.tokenizer

    # ── logprobs ──────────────────────────────────────────────────────────────────────────────────────────────────

    def tensors(self, lot: Lot) -> Tensors:
        import torch

        arrays = (lot.inputs, lot.seen, lot.targets, lot.mask, lot.sampled, lot.advantages, lot.counts)
        return Tensors(*(torch.from_numpy(array).to(self.device) for array in arrays))

    def logprobs(self, lot: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """For each learned token its natural logarithm of the probability, [rows, learned], with gradients where they
        are wanted; and the entropy of what it was chosen from, [tokens], without. float32."""
        return self._run(self._network, lot)

    def reference(self, lot: Tensors) -> torch.Tensor:
        """The logprobs that the base model gives the same tokens, [rows, learned], without gradients."""
        import torch

        with torch.no_grad():
            if self._tuner is None:
                if self._reference is None:
                    raise LearnError(
                        "the divergence from the base model is wanted, and the base was not kept.",
                        hint="open the learner with learn.kl above 0",
                    )
                return self._run(self._reference, lot)[0]
            with self._tuner.disable_adapter():
                return self._run(self._network, lot)[0]

    def _run(self, network: Any, lot: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        kind = self.device.type
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind != "cpu"):
            if self._plain:
                # Without a mask: what is padded on the right is seen by nobody, and attention is at its quickest.
                hidden = network.base_model(input_ids=lot.inputs, use_cache=False).last_hidden_state
                hidden = hidden.flatten(0, 1).index_select(0, lot.seen)
            else:
                logits = network(input_ids=lot.inputs, use_cache=False).logits
                hidden = logits.flatten(0, 1).index_select(0, lot.seen)
        if self._plain:
            from mia.learn.logprobs import selected_logprobs

            chosen, entropy = selected_logprobs(hidden, network.get_output_embeddings().weight, lot.targets)
        else:
            told = hidden.float().log_softmax(-1)
            chosen = told.gather(-1, lot.targets[:, None])[:, 0]
            entropy = -(told.detach().exp() * told.detach()).sum(-1)
        return chosen.new_zeros(lot.mask.shape).masked_scatter(lot.mask, chosen), entropy

    def _has_plain_head(self) -> bool:
        """Whether logits are the last hidden state times a matrix, and nothing else. Some architectures scale or bend
        them; what the network itself gives decides."""
        import torch

        head = self._network.get_output_embeddings()
        if type(head) is not torch.nn.Linear or head.bias is not None:
            return False
        ids = torch.arange(min(8, self.vocabulary), device=self.device)[None]
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type != "cpu"):
            ours = head(self._network.base_model(input_ids=ids, use_cache=False).last_hidden_state)
            theirs = self._network(input_ids=ids, use_cache=False).logits
        return bool(torch.equal(ours, theirs))

    # ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> None:
        """Write the weights: an adapter as peft reads it, or a whole model as transformers does, either with the digest
        of its base ("mia_base"). A folder that is not there yet appears whole or not at all; in one that is, each file
        is replaced whole. Raises LearnError if it cannot be written."""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        except OSError as error:
            raise _unwritten(folder, error) from error
        try:
            self._write(fresh)
            _settle(fresh, folder)
        except OSError as error:
            raise _unwritten(folder, error) from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        import safetensors.torch
        import transformers

        try:
            with silenced(transformers):
                if self._tuner is None:
                    self._network.config.mia_base = self.base
                    self._network.save_pretrained(folder)
                    self._weights.tokenizer.save_pretrained(folder)
                    return
            import peft

            tensors = {
                name: tensor.detach().cpu().contiguous()
                # Left to itself, peft asks the hub whether the vocabulary of the base has grown.
                for name, tensor in peft.get_peft_model_state_dict(
                    self._tuner, adapter_name=_ADAPTER, save_embedding_layers=False
                ).items()
            }
            file = folder / "adapter_model.safetensors"
            safetensors.torch.save_file(tensors, file, {"format": "pt", "mia_base": self.base})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error
        config = self._tuner.peft_config[_ADAPTER].to_dict()
        config.update(inference_mode=True, base_model_name_or_path=self._weights.name)
        content = json.dumps(_plain(config), indent=2, sort_keys=True) + "\n"
        (folder / "adapter_config.json").write_text(content, encoding="utf-8")


def _tuned(weights: Weights, settings: LearnSettings, adapter: Path | None, seed: int) -> Any:
    """The network with an adapter that learns in its linear layers, the vocabulary's left out."""
    torch: Any = require("torch", extra="local", purpose="learning")
    transformers: Any = require("transformers", extra="local", purpose="learning")
    peft: Any = require("peft", extra="local", purpose="learning an adapter")
    if adapter is not None:
        weights.check_adapter(adapter)
        try:
            with silenced(transformers):
                tuned = peft.PeftModel.from_pretrained(
                    weights.network, adapter, adapter_name=_ADAPTER, is_trainable=True
                )
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            why = (str(error) or type(error).__name__).splitlines()[0][:200]
            raise ConfigError(
                f"the adapter in '{adapter}' cannot be loaded onto '{weights.folder}' ({why}).",
                hint="begin from a version that was trained from this very base, or from none",
            ) from error
    else:
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules="all-linear",
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        with silenced(transformers), torch.random.fork_rng():
            torch.manual_seed(seed)
            tuned = peft.get_peft_model(weights.network, config, adapter_name=_ADAPTER)
    return tuned.eval()


def _plain(content: Any) -> Any:
    """As JSON: sets in order, so that the same adapter is the same file."""
    if isinstance(content, dict):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, set | frozenset):
        return sorted(content)
    return getattr(content, "value", content)


def _settle(fresh: Path, folder: Path) -> None:
    """Move what was written to where it belongs."""
    # The configuration last: what lacks it is no adapter and no model.
    files = sorted(fresh.iterdir(), key=lambda file: (file.suffix == ".json", file.name))
    for file in files:
        # Weights are written for their owner alone, and are read by whoever serves them.
        file.chmod(0o644)
        with file.open("rb") as content:
            os.fsync(content.fileno())
    fresh.chmod(0o755)
    if not folder.exists():
        with contextlib.suppress(FileExistsError):
            fresh.rename(folder)
    if fresh.exists():
        for file in files:
            file.replace(folder / file.name)
    synchronise(folder)
    synchronise(folder.parent)


def synchronise(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _unwritten(folder: Path, error: OSError) -> LearnError:
    return LearnError(
        f"the weights cannot be written to '{folder}' ({error.strerror or error}).",
        wanted="a folder on a disk with room",
        hint="free some space, or choose another folder",
    )
