"""A causal language model of transformers, read from a folder and checked before anything is sampled with it.

What a folder must hold: `config.json`, weights as safetensors (never pickles), the files of a tokenizer and a chat
template. Code that a folder brings along is never run. A name that is no folder is looked up at the Hugging Face hub:
in the cache on this machine first, then over the network. Whatever is wrong ends as a `ConfigError` that names the
file.

`Weights.forward` is the one door to the network of layers. It speaks of rows that may differ in length and in adapter;
masks are made here, from positions alone, so that every architecture whose attention takes a ready mask is served by
the same code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mia.errors import ConfigError, MissingExtra, RealCallForbidden, install_hint, require
from mia.models import real_calls_forbidden
from mia.models.lora import BASE, LoraLayers

_READING = threading.RLock()
FORMAT = 1
"""The newest "mia_format" of a checkpoint's config.json that this MIA reads; a config without it is not ours."""
_PURPOSE = "models that run in this process"
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HINT = "set models.*.path to a folder that transformers wrote (save_pretrained of the model and of its tokenizer)"
_ENDPOINT_HINT = "serve it with an endpoint (vLLM, llama.cpp, Ollama) and set models.*.base_url"
_RUNS_CODE = False
"""Said, and not left out: left out, transformers asks whoever sits at the terminal, and runs it for a "y"."""
_LAYER_TYPES = frozenset(("full_attention", "sliding_attention"))


class Weights:
    """The network, its tokenizer, and the LoRA adapters that are loaded beside it.

    The network and the adapters are for one thread, its owner's; the tokenizer (`render`, `encode`, `decode`) for any.
    """

    def __init__(self, network: Any, tokenizer: Any, folder: Path) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.folder = folder
        self.name = folder.name
        self.version = ""
        """What `adopt` called the weights that the network has now; empty: those it was loaded with."""
        self.device = network.device
        config = network.config.get_text_config()
        self.window: int | None = getattr(config, "max_position_embeddings", None)
        """The longest sequence that the network can read; None: it sets no limit."""
        self.end_ids = _end_ids(network, tokenizer)
        """The tokens that end a turn."""
        self._layer_types, self._sliding_window = _layer_types(config, folder)
        self._quick = getattr(tokenizer, "backend_tokenizer", None)
        self._special = _special(tokenizer)
        self._lora: LoraLayers | None = None
        self._adapters: dict[str, str] = {}
        self._digest = ""

    @classmethod
    def load(cls, path: str, *, device: str = "cpu", exact: bool = False) -> Weights:
        """Read a folder, or a name at the hub. float32 on a CPU, bfloat16 elsewhere unless `exact`.

        Raises ConfigError for whatever cannot be used, MissingExtra without torch or transformers, RealCallForbidden
        for a name that is not on this machine where real calls are off.
        """
        torch = require("torch", extra="local", purpose=_PURPOSE)
        transformers = require("transformers", extra="local", purpose=_PURPOSE)
        place = _device(torch, device)
        folder = find_folder(path)
        check_files(folder)
        dtype = torch.float32 if exact or place.type == "cpu" else torch.bfloat16
        with silenced(transformers):
            tokenizer = _read_tokenizer(transformers, folder)
            network = _read_network(transformers, folder, dtype).to(place).eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        _check_vocabulary(network, tokenizer, folder)
        weights = cls(network, tokenizer, folder)
        weights._check_served(torch)
        return weights

    # ── running it ────────────────────────────────────────────────────────────────────────────────────────────────

    def forward(
        self,
        ids: Any,
        positions: Any,
        *,
        cache: Any = None,
        length: int = 0,
        keep: Any = 1,
        adapters: Sequence[str] = (),
    ) -> Any:
        """Logits, float32, shape [rows, kept positions, vocabulary].

        `ids`, `positions`: int64, [rows, queries]. A token sees what stands at its own position and before it, inside
        the sliding window where a layer has one. `cache`: where keys and values are kept, by position, `length` of them
        counting the new ones; None: there are none but the new ones. `keep`: the queries that logits are wanted for,
        as indices; an integer: so many of the last. `adapters`: a name for each row ("" for none); empty: none at all.
        """
        import torch

        if self._lora is not None:
            self._lora.choose([_inner(name) if name else BASE for name in adapters])
        queries = ids.shape[1]
        length = length or queries
        first = length - queries
        output = self.network(
            input_ids=ids,
            attention_mask=self._masks(positions, length),
            # Padding may stand where the network has no position; nobody looks at what comes out there.
            position_ids=positions.clamp(max=self.window - 1) if self.window and length > self.window else positions,
            past_key_values=cache,
            cache_position=torch.arange(first, length, device=ids.device),
            use_cache=cache is not None,
            logits_to_keep=keep,
        )
        return output.logits.float()

    def _masks(self, positions: Any, length: int) -> Any:
        """What each query may see: 0 to add to a score, or the lowest number, [rows, 1, queries, keys]; for networks
        with several kinds of layers one for each kind."""
        import torch

        keys = torch.arange(length, device=positions.device)
        queries = positions[:, None, :, None]
        lowest = torch.finfo(self.network.dtype).min

        def mask(kind: str) -> Any:
            hidden = keys > queries
            if kind == "sliding_attention":
                hidden = hidden | (keys <= queries - self._sliding_window)
            return torch.zeros(hidden.shape, dtype=self.network.dtype, device=keys.device).masked_fill_(hidden, lowest)

        if len(self._layer_types) == 1:
            return mask(self._layer_types[0])
        return {kind: mask(kind) for kind in self._layer_types}

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The prompt for the assistant's next turn, by the tokenizer's chat template."""
        said = [{**message, "content": self._defused(message["content"])} for message in messages]
        return str(self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False))

    def _defused(self, content: str) -> str:
        """What is said in a conversation with a space in all that the tokenizer would take for a special token: a
        document must not end a turn, nor begin another."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", content) if self._special else content

    def encode(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, which already holds its special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of sampled tokens, without special ones; half a character becomes U+FFFD."""
        if self._quick is not None:  # Several times faster, and asked for at every token of a reply.
            return str(self._quick.decode(ids, skip_special_tokens=True))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _check_served(self, torch: Any) -> None:
        """Whether this architecture gives the same numbers in a batch of slots as it does alone: not every network
        takes masks and positions from outside, or keeps keys and values at all. Raises ConfigError."""
        from mia.models.slots import Slots

        rows = ((0, 1, 2, 3, 4, 5), (3, 2, 1))
        starts = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        longest = int(starts.max())
        read = torch.tensor([[*row[:-1], *([0] * (longest + 1 - len(row)))] for row in rows], device=self.device)
        positions = torch.arange(longest, device=self.device).expand(len(rows), longest)
        slots = Slots(self.network.config.get_text_config().num_hidden_layers)
        slots.reserve(len(rows), longest + 1)
        try:
            with torch.inference_mode():
                slots.prefill(0, [0] * len(rows), longest)
                self.forward(read, positions, cache=slots.cache, length=longest)
                slots.step(torch.arange(len(rows), device=self.device), starts, longest + 1)
                last = torch.tensor([row[-1:] for row in rows], device=self.device)
                ours = self.forward(last, starts[:, None], cache=slots.cache, length=longest + 1)[:, -1]
                alone = [self.network(torch.tensor([row], device=self.device)).logits[0, -1].float() for row in rows]
            difference = float((ours - torch.stack(alone)).abs().max())
            # Weights that went wrong in training are not for the architecture to answer for.
            same = difference != difference or difference <= 0.05 * max(1.0, float(ours.abs().max()))
            why = f"its logits come out different by {difference:.2g}"
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
            same, why = False, _first_line(error)
        if not same:
            raise ConfigError(
                f"the architecture of '{self.folder}' ({self.network.config.model_type}) cannot be sampled in a "
                f"batch here ({why}).",
                wanted="a transformer with ordinary attention over keys and values (Llama, Qwen, GPT-2, …)",
                hint=_ENDPOINT_HINT,
            )

    # ── other weights ─────────────────────────────────────────────────────────────────────────────────────────────

    def check_fits(self, other: Weights) -> None:
        """Whether another model can take this one's place unnoticed: the same layers, vocabulary and chat template.
        Raises ConfigError."""
        ours, theirs = _shapes(self.network), _shapes(other.network)
        if different := sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)):
            first = different[0]
            what = f"'{first}' has shape {theirs.get(first, 'none')}, and {ours.get(first, 'none')} here"
        elif other.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            what = "its tokenizer has other tokens"
        elif other.tokenizer.chat_template != self.tokenizer.chat_template:
            what = "its chat template is another"
        else:
            return
        raise ConfigError(
            f"the weights in '{other.folder}' cannot take the place of those in '{self.folder}': {what}.",
            wanted="weights that were trained from this very model",
        )

    def adopt(self, other: Weights, version: str) -> None:
        """Go on with the network of another model that fits (`check_fits`), under a name. In the owner's thread."""
        self.network, self.folder, self.version = other.network, other.folder, version
        self._lora, self._digest = None, ""

    # ── adapters ──────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the adapters that are loaded, the oldest first."""
        return tuple(self._adapters)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load a LoRA adapter that peft saved, under a name. Raises ConfigError if it cannot be used with this base,
        which is then as it was."""
        _check_adapter_name(name)
        if name in self._adapters:
            raise ConfigError(
                f"an adapter named '{name}' is loaded already, from '{self._adapters[name]}'.",
                hint="load it under a name that was not used before, or unload the old one",
            )
        self.check_adapter(folder)
        import transformers

        try:
            with silenced(transformers):
                self._lora = self._lora or LoraLayers(self.network)
                self._lora.load(_inner(name), folder)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"the adapter in '{folder}' cannot be loaded onto '{self.folder}' ({_first_line(error)}).",
                hint="an adapter's folder is what peft's save_pretrained wrote for this very base model",
            ) from error
        self._adapters[name] = str(folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises ConfigError for a name that is not loaded."""
        if name not in self._adapters:
            raise ConfigError(f"no adapter named '{name}' is loaded.", wanted=self.known_adapters())
        del self._adapters[name]
        assert self._lora is not None
        self._lora.unload(_inner(name))

    def known_adapters(self) -> str:
        """For errors: the names there are."""
        return f"one of: {', '.join(self._adapters)}" if self._adapters else "no name: no adapter is loaded"

    def check_adapter(self, folder: Path) -> None:
        """Whether a folder holds a LoRA adapter that fits this base; nothing is loaded. Raises ConfigError."""
        hint = "an adapter's folder is what peft's save_pretrained wrote for this very base model"
        if not (folder / "adapter_config.json").is_file():
            raise ConfigError(f"'{folder}' holds no adapter: there is no adapter_config.json in it.", hint=hint)
        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read '{folder / 'adapter_config.json'}': {error}.", hint=hint) from error
        kind = config.get("peft_type") if isinstance(config, dict) else None
        if kind != "LORA" or config.get("bias", "none") != "none" or config.get("modules_to_save"):
            raise ConfigError(
                f"the adapter in '{folder}' is no plain LoRA (peft_type {kind}).",
                wanted='peft_type "LORA", bias "none", no modules_to_save',
                hint=hint,
            )
        file = folder / "adapter_model.safetensors"
        for key, shape, metadata in _tensors(file, hint):
            if metadata.get("mia_base") and metadata["mia_base"] != self.digest():
                raise ConfigError(
                    f"the adapter in '{folder}' was trained on another base than '{self.folder}'.",
                    wanted=f"a base whose weights have the digest {metadata['mia_base']}, not {self.digest()}",
                    hint=hint,
                )
            path = re.sub(r"^base_model\.model\.|\.lora_\w+(\.weight)?$", "", key)
            match = re.search(r"\.(lora_[AB])\.weight$", key)
            try:
                module = self.network.get_submodule(path)
            except AttributeError:
                raise ConfigError(
                    f"the adapter in '{folder}' does not fit '{self.folder}', which has no layer '{path}'.", hint=hint
                ) from None
            weight = getattr(getattr(module, "base_layer", module), "weight", None)
            if match and (weight is None or shape[1 if match[1] == "lora_A" else 0] not in weight.shape):
                raise ConfigError(
                    f"the adapter in '{folder}' does not fit '{self.folder}': its part for '{path}' has shape "
                    f"{tuple(shape)}, the layer {tuple(weight.shape) if weight is not None else 'none'}.",
                    hint=hint,
                )

    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 over the files of the weights: which base this is. An adapter may say
        it, as "mia_base" in the metadata of its safetensors."""
        if not self._digest:
            total = hashlib.sha256()
            for file in sorted(self.folder.glob("*.safetensors")):
                with file.open("rb") as content:
                    total.update(hashlib.file_digest(content, "sha256").digest())
            self._digest = total.hexdigest()[:16]
        return self._digest


def _shapes(network: Any) -> dict[str, tuple[int, ...]]:
    """Of a network's own parameters; peft, where it was once at work, has put its layers around them."""
    return {
        name.replace(".base_layer.", "."): tuple(parameter.shape)
        for name, parameter in network.named_parameters()
        if ".lora_" not in name
    }


def find_folder(path: str) -> Path:
    """The folder of a model: the path itself, or what the hub gives for a name. Raises ConfigError, and
    RealCallForbidden where the network would have to be asked and real calls are off."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not is_hub_name(path):
        raise ConfigError(f"there is no folder '{path}' to read a model from.", hint=_HINT)
    return _from_hub(path)


def is_hub_name(path: str) -> bool:
    """Whether this could be the name of a model at the hub ("owner/model"), and not only a path."""
    return _HUB_NAME.fullmatch(path) is not None


def _from_hub(name: str) -> Path:
    hub = require("huggingface_hub", extra="local", purpose="models of a hub")
    errors = (OSError, ValueError, RuntimeError)
    with contextlib.suppress(*errors):  # Not on this machine yet.
        cached = Path(hub.snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
        # Others leave parts in the cache: a tokenizer alone, say.
        if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
            return cached
    if real_calls_forbidden():
        raise RealCallForbidden(
            f"real calls are forbidden in this process, and the hub was to be asked for '{name}', which is not on this "
            "machine.",
            hint=_HINT,
        )
    try:
        return Path(hub.snapshot_download(name, allow_patterns=_FILES))
    except errors as error:
        raise ConfigError(
            f"'{name}' is no folder here, and the hub did not give a model of that name ({_first_line(error)}).",
            hint=f"{_HINT}, or try again with a network",
        ) from error


def check_files(folder: Path) -> None:
    """Whether configuration and weights are there, of a format that is read, and whole; nothing is loaded. Raises
    ConfigError, and MissingExtra without safetensors."""
    file = folder / "config.json"
    if not file.is_file():
        raise ConfigError(f"'{folder}' holds no model: there is no config.json in it.", hint=_HINT)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read '{file}': {error}.", hint=_HINT) from error
    if not isinstance(config, dict):
        raise ConfigError(f"'{file}' holds no JSON object.", hint=_HINT)
    version = config.get("mia_format", FORMAT)
    if not isinstance(version, int) or version > FORMAT:
        raise ConfigError(
            f"the checkpoint '{folder}' has the format {version!r}; this MIA reads {FORMAT}.",
            hint="install the newer MIA that wrote it",
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"'{folder}' holds no weights: there is no *.safetensors in it.", hint=_HINT)
    for weights in files:
        next(_tensors(weights, _HINT), None)


def _tensors(file: Path, hint: str) -> Iterator[tuple[str, Sequence[int], dict[str, str]]]:
    """Name, shape and the file's metadata, for each tensor of a safetensors file. Raises ConfigError where it cannot be
    read; a file that was cut short is found here, for its header says how long it should be."""
    safetensors = require("safetensors", extra="local", purpose=_PURPOSE)
    try:
        with safetensors.safe_open(file, framework="numpy") as content:
            metadata = content.metadata() or {}
            found = [(key, content.get_slice(key).get_shape(), metadata) for key in content.keys()]  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"cannot read '{file}': {error}.", hint=hint) from error
    yield from found


def _read_tokenizer(transformers: Any, folder: Path) -> Any:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=_RUNS_CODE
        )
    except Exception as error:  # The tokenizers library raises plain Exception for a broken file.
        _refuse_code(error, folder)
        raise ConfigError(
            f"cannot read the tokenizer in '{folder}' ({_first_line(error)}).",
            wanted="tokenizer.json and tokenizer_config.json",
            hint=_HINT,
        ) from error
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"the tokenizer in '{folder}' has no chat template, so nobody can say how a conversation is written.",
            wanted="chat_template.jinja, or chat_template in tokenizer_config.json",
            hint="take a model that was trained for chat, or set tokenizer.chat_template and save_pretrained anew",
        )
    return tokenizer


def _read_network(transformers: Any, folder: Path, dtype: Any) -> Any:
    options = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": _RUNS_CODE,
        "use_safetensors": True,
        "output_loading_info": True,
        # Told below, with the tensor's name, instead of in a report on stderr.
        "ignore_mismatched_sizes": True,
    }
    try:
        try:
            network, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="sdpa", **options
            )
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            network, info = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", **options
            )
    except MissingExtra:
        raise
    except ImportError as error:
        raise MissingExtra(f"'{folder}' cannot be read: {_first_line(error)}.", hint=install_hint("local")) from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        _refuse_code(error, folder)
        raise ConfigError(
            f"cannot read a causal language model from '{folder}' ({_first_line(error)}).", hint=_HINT
        ) from error
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise ConfigError(
            f"the weights in '{folder}' do not fit config.json: '{name}' has shape {tuple(stored)}.",
            wanted=f"shape {tuple(wanted)}",
            hint=_HINT,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"the weights in '{folder}' lack {len(missing)} tensors of config.json, the first '{missing[0]}'.",
            hint=_HINT,
        )
    return network


def _refuse_code(error: Exception, folder: Path) -> None:
    """Raise ConfigError if a folder cannot be read without the code that it brings along."""
    if "trust_remote_code" in str(error):
        raise ConfigError(
            f"the model in '{folder}' brings code of its own, and code of a folder is never run here.",
            wanted="an architecture and a tokenizer that the installed transformers knows",
            hint=_ENDPOINT_HINT,
        ) from error


def _check_vocabulary(network: Any, tokenizer: Any, folder: Path) -> None:
    rows = network.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer in '{folder}' has token ids up to {highest}, and the model knows {rows} tokens.",
            wanted="the tokenizer that the model was trained with",
            hint=_HINT,
        )


def _end_ids(network: Any, tokenizer: Any) -> frozenset[int]:
    """What model, generation config and tokenizer each call the end of a turn."""
    found: set[int] = set()
    for given in (network.config.eos_token_id, network.generation_config.eos_token_id, tokenizer.eos_token_id):
        if isinstance(given, int):
            found.add(given)
        elif given is not None:
            found.update(given)
    return frozenset(found)


def _special(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the texts of the tokens that end a turn, begin one, and the like; None: there are none."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    # A single letter cannot be broken.
    texts = sorted({text for text in (*added, *tokenizer.all_special_tokens) if len(text) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _layer_types(config: Any, folder: Path) -> tuple[tuple[str, ...], int]:
    """The kinds of attention in the network, and the width of its sliding window."""
    window = getattr(config, "sliding_window", None)
    named = getattr(config, "layer_types", None)
    kinds = tuple(sorted(set(named))) if named else ("sliding_attention" if window else "full_attention",)
    strange = [kind for kind in kinds if kind not in _LAYER_TYPES]
    if strange:
        raise ConfigError(
            f"the model in '{folder}' has layers of a kind that is not served here: {', '.join(strange)}.",
            wanted="a transformer with ordinary attention (full or sliding)",
            hint=_ENDPOINT_HINT,
        )
    return kinds, window or 0


def _device(torch: Any, name: str) -> Any:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"there is no device '{name}' here ({_first_line(error)}).",
            hint="set models.*.device to cpu, or to cuda with a torch built for it",
        ) from error
    return device


def _check_adapter_name(name: str) -> None:
    if not name or name == BASE:
        raise ConfigError(f"'{name}' cannot be the name of an adapter.", wanted=f"any text but '' and '{BASE}'")


def _inner(name: str) -> str:
    """What peft calls an adapter: names of ours may hold dots, names of modules may not."""
    return "a" + hashlib.sha256(name.encode()).hexdigest()[:16]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


@contextlib.contextmanager
def silenced(transformers: Any) -> Iterator[None]:
    """For whatever reads or writes models. Loading draws bars and reports on stderr what nobody can act on; what
    matters is raised. One thread at a time: how loud it is, and how tensors are made meanwhile, transformers keeps in
    globals, and of two models that are read at once each may lack something."""
    logging = transformers.utils.logging
    with _READING:
        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def default_sampling(network: Any) -> tuple[float, float]:
    """Temperature and top_p that a model's generation_config.json asks for; without one, greedy: (0.0, 1.0)."""
    own = network.generation_config
    if not own.do_sample:
        return 0.0, 1.0
    temperature = 1.0 if own.temperature is None else float(own.temperature)
    top_p = 1.0 if own.top_p is None else float(own.top_p)
    sane = math.isfinite(temperature) and temperature >= 0 and 0 < top_p <= 1
    return (temperature, top_p) if sane else (0.0, 1.0)
