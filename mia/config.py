"""The one typed page of settings: defaults ← TOML file ← `MIA_*` environment ← flags.

The resolved page is stored with every run, without its secrets; a resume under a different page is refused with the
names of the settings that differ. In the environment a dot is two underscores: `MIA_MODELS__DEFAULT__MODEL=qwen3`.

No error shows what may be a secret: a key, an address, or whatever stands where a section or a list belongs. An address
with a name or password in it is refused, because addresses are stored and shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from mia.errors import ConfigError
from mia.scope import check_scope
from mia.types import Role


def _check_address(address: str) -> str:
    if "@" in address:
        raise ConfigError(
            "an address must hold no '@', before which stand a name and a password.",
            hint="leave them out; a key is named by api_key_env, the environment variable that holds it",
        )
    return address


def _check_variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*|", name):
        raise ConfigError(
            "it names no environment variable.",
            wanted="a name of letters, digits and underscores, and not the key itself",
            hint="export MY_KEY=…, and set api_key_env to MY_KEY",
        )
    return name


def _check_server(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]+([_-][A-Za-z0-9]+)*", name) or len(name) > 24:
        raise ConfigError(
            "it names no MCP server.",
            wanted="up to 24 letters, digits and single dashes or underscores: its tools are called NAME__TOOL",
        )
    return name


def _split(given: Any) -> Any:
    """A list that came as text, as it does from the environment."""
    return [part.strip() for part in given.split(",") if part.strip()] if isinstance(given, str) else given


Address = Annotated[str, AfterValidator(_check_address)]
VariableName = Annotated[str, AfterValidator(_check_variable)]
ServerName = Annotated[str, AfterValidator(_check_server)]
Scope = Annotated[str, AfterValidator(check_scope)]
ToolName = Literal["search", "lookup", "fetch", "read", "web_image_to_image_search"]


WORLD_SEED = 900_001
"""The world of the demonstration; neither training nor tests see it."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSettings(Section):
    """How one model is reached. A role's section takes what it leaves out from `models.default`."""

    provider: Literal["openai", "local", "replay"] = "openai"
    """"openai" speaks to any OpenAI-compatible endpoint; "local" runs a model in this process (`path`); "replay" serves
    a recording (`path`)."""
    base_url: Address = ""
    """E.g. http://localhost:11434/v1; empty: the OPENAI_BASE_URL of the environment, else OpenAI's own."""
    model: str = ""
    """Its name at the endpoint."""
    api_key: SecretStr = SecretStr("")
    """Better left to the environment: OPENAI_API_KEY is used for OpenAI's own endpoint and for OPENAI_BASE_URL;
    for any other endpoint name the variable in `api_key_env`, so that a key never goes to a stranger."""
    api_key_env: VariableName = ""
    """The environment variable that holds the key."""
    protocol: Literal["text", "native"] = "text"
    """How the Executor's tool calls travel: in the text, or as the endpoint's own function calls."""
    temperature: float | None = Field(default=None, ge=0)
    """Unset: the endpoint's own."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Unset: the endpoint's own."""
    max_tokens: int = Field(default=2048, ge=1)
    """Tokens kept free for a reply."""
    context_window: int = Field(default=128_000, ge=256)
    """Tokens that prompt and reply may take together."""
    timeout_seconds: float = Field(default=120.0, gt=0)
    """For one try: no byte of the reply for so long, or no complete reply within five times it."""
    max_attempts: int = Field(default=4, ge=1)
    """Tries of one call."""
    max_retry_seconds: float = Field(default=300.0, gt=0)
    """For one call with all its retries."""
    concurrency: int = Field(default=32, ge=1)
    """Calls under way at one endpoint, over all roles."""
    price_prompt: float | None = Field(default=None, ge=0)
    """US dollars per million prompt tokens; with `price_completion` it makes costs known."""
    price_completion: float | None = Field(default=None, ge=0)
    """US dollars per million completion tokens."""
    path: str = ""
    """For "replay": the recording. For "local": a folder of transformers, or a name at a hub; empty: the embedded
    model."""
    adapter: str = ""
    """For "local": the folder of a LoRA adapter, as peft saves it, that answers; empty: the model as it is."""
    prompts: Literal["full", "compact"] = "full"
    """How it is spoken to: "compact" is the small language that the embedded model was trained on."""
    batch: int = Field(default=32, ge=1, le=1024)
    """For "local": conversations that are sampled side by side."""
    device: str = "cpu"
    """For "local": where it runs, as torch names it."""
    threads: int = Field(default=1, ge=1)
    """For "local" on a CPU: threads of the process; on few shared cores, one is fastest."""


class ModelsSettings(Section):
    default: ModelSettings = ModelSettings()
    planner: ModelSettings | None = None
    executor: ModelSettings | None = None
    manager: ModelSettings | None = None
    judge: ModelSettings | None = None
    reader: ModelSettings | None = None
    cold_start: ModelSettings | None = None
    """A stronger model that writes the plan while the memory cannot fill what is wanted; off by default."""
    record: str = ""
    """Write every call and reply to this recording."""

    def of(self, name: Role | Literal["cold_start"]) -> ModelSettings:
        """The settings of one role, its gaps filled from `default`."""
        own: ModelSettings | None = getattr(self, str(name))
        if own is None:
            # Where only the other roles have a model, the Executor's reads.
            unnamed = self.default.provider == "openai" and not self.default.model
            return self.of(Role.EXECUTOR) if name == Role.READER and unnamed and self.executor else self.default
        return self.default.model_copy(update={field: getattr(own, field) for field in own.model_fields_set})

    @model_validator(mode="after")
    def _room_for_a_prompt(self) -> ModelsSettings:
        """Looked at here and not in a role's own section, whose gaps the default fills."""
        roles: tuple[Role | Literal["cold_start"], ...] = (*Role, "cold_start")
        own = {str(role): self.of(role) for role in roles if getattr(self, role) is not None}
        for name, settings in {"default": self.default, **own}.items():
            if settings.max_tokens >= settings.context_window:
                raise ConfigError(
                    f"of models.{name}, the reply (max_tokens = {settings.max_tokens}) leaves no room for a prompt in "
                    f"the window (context_window = {settings.context_window}).",
                    hint=f"set models.{name}.max_tokens = {settings.context_window // 4}, or a larger context_window "
                    "where the model has one",
                )
        return self


class LineSettings(Section):
    """Which stages the line runs."""

    plan: bool = True
    """Write a search plan before searching."""
    best_of: int = Field(default=1, ge=1, le=16)
    """Plans sampled per question; with more than one, a model chooses."""
    replan: Literal["reflect", "verdict", "never"] = "reflect"
    """Who calls for a supplementary plan: the Planner's reflection, or the judge's verdict on the first answer."""
    max_reflections: int = Field(default=1, ge=0)
    """How often the Planner may look back and replan."""
    fresh_memories: bool = False
    """On a replan, recall memories that were not shown before."""
    judge: Literal["final", "each"] = "final"
    """Judge the reported answer, or every attempt."""


class ExecutorSettings(Section):
    max_calls: int = Field(default=20, ge=1)
    """Model calls over both executions, the one that answers included."""
    max_seconds: float = Field(default=600.0, gt=0)
    """Wall clock over both executions."""
    max_context_tokens: int = Field(default=110_000, ge=256)
    """Tokens of the conversation, where the model's window allows more."""
    tools: Annotated[tuple[ToolName, ...], BeforeValidator(_split)] = ("search",)
    """The tools it may call, as a list or with commas between."""
    protocol_retries: int = Field(default=3, ge=0)
    """Replies in a row that hold neither a call nor an answer, before the Executor is told to answer."""


class LimitSettings(Section):
    """Hard limits; unset is no limit."""

    calls: int | None = Field(default=None, ge=1)
    """Model calls, of all roles."""
    tokens: int | None = Field(default=None, ge=1)
    """Tokens, prompts and replies together."""
    money: float | None = Field(default=None, gt=0)
    """US dollars; every model in use needs a price."""
    seconds: float | None = Field(default=None, gt=0)
    """Wall clock."""


class BudgetSettings(Section):
    question: LimitSettings = LimitSettings()
    run: LimitSettings = LimitSettings()


class MemorySettings(Section):
    enabled: bool = True
    """Recall before planning, and remember afterwards."""
    path: str = ""
    """The store; empty: `memory.db` in `home`."""
    scope: Scope = "default"
    """Whose memories these are, as tenant/project/user: what is learnt goes here, and what the levels above know is
    recalled too; never what other branches know."""
    k_positive: int = Field(default=2, ge=0)
    """Memories of correct answers to show."""
    k_negative: int = Field(default=2, ge=0)
    """Memories of incorrect answers to show."""
    balance: Literal["fixed", "fill"] = "fixed"
    """"fill": where one judgement has too few, the other takes its places."""
    score: Literal["mia", "paper"] = "mia"
    """"paper": 0.7 · min-max similarity + 0.3 · win rate over everything, without a floor; the settings down to
    `diversity` then do not count."""
    similarity_weight: float = Field(default=0.7, ge=0)
    """Of the score: how similar the question is."""
    value_weight: float = Field(default=0.3, ge=0)
    """Of the score: how often showing it came out right, doubted while there were few trials."""
    frequency_weight: float = Field(default=0.0, ge=0)
    """Of the score: a bonus for what was rarely shown."""
    recency_weight: float = Field(default=0.0, ge=0)
    """Of the score: a bonus for what is new."""
    recency_half_life: float = Field(default=30.0, gt=0)
    """Days until that bonus is halved."""
    coverage_weight: float = Field(default=0.0, ge=0)
    """Of the choice, beside the score: the share of the question's words that no memory chosen before it shares. A
    question of several parts then finds one memory for each of them."""
    floor: float = Field(default=0.5, ge=-1, le=1)
    """Memories whose similarity is below are never shown."""
    diversity: float = Field(default=0.98, ge=0, le=1)
    """A memory whose question is more similar than this to one already shown is passed over; 1: never."""
    embedder: Literal["auto", "minilm", "hashing", "openai"] = "auto"
    """"auto": MiniLM where the extra `local` is installed, else hashing."""
    categories: bool = False
    """Let the Manager's model sort questions into categories, and recall within one."""
    frozen: bool = False
    """Recall, and learn nothing. Episodes are still kept."""
    replace_below: float = Field(default=1.0, ge=0, le=1)
    """A memory that wins as often as this gives way to no near-duplicate (the paper's test-time learning: 0.7); 1: the
    win rate does not matter."""
    redact: Literal["secrets", "personal", "off"] = "secrets"
    """What is blacked out before anything is stored: keys and tokens; with "personal" also mail addresses, telephone
    and card numbers."""
    quarantine: bool = True
    """Keep memories that read like orders to the agent out of sight, until somebody has looked at them."""
    quota: int = Field(default=0, ge=0)
    """Memories in sight per scope; above it the least valuable are forgotten, the oldest first. 0: no limit."""
    expire_days: float = Field(default=0.0, ge=0)
    """Days after which a new memory is not shown any more. 0: never."""


class SearchSettings(Section):
    engine: Literal["corpus", "world", "http", "searxng", "serper", "ddgs"] = "corpus"
    """Your documents, the offline world, a Search-R1 server, or the web."""
    corpus: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Files and folders to answer from, as a list or with commas between; indexed on first use."""
    index: str = ""
    """An index made by `mia index`; empty: the one that belongs to `corpus`."""
    url: Address = ""
    """For "http" (Search-R1 /retrieve) and "searxng"."""
    k: int = Field(default=3, ge=1, le=100)
    """Passages per query."""
    vectors: Literal["auto", "static", "minilm", "openai", "off"] = "auto"
    """Which embedder fuses with the lexical ranks; "auto": static where the extra `local` is installed, else off."""
    images: str = ""
    """The cache folder of the image-to-image search."""
    world: int = Field(default=WORLD_SEED, ge=0, lt=1_000_000)
    """For "world": the seed that makes it."""


class EmbeddingSettings(Section):
    """For the embedder "openai": any /v1/embeddings."""

    base_url: Address = ""
    """Empty: the OPENAI_BASE_URL of the environment, else OpenAI's own."""
    model: str = "text-embedding-3-small"
    """Its name at the endpoint."""
    api_key_env: VariableName = ""
    """The environment variable that holds the key."""


class JudgeSettings(Section):
    kind: Literal["auto", "reference", "llm", "peer", "trust", "none"] = "auto"
    """"auto": reference where a question has references, else peer review."""
    withhold: bool = False
    """Hold back an answer unless the trust judge finds its support strong."""


class RunSettings(Section):
    concurrency: int = Field(default=8, ge=1)
    """Questions at a time."""


def _bound(value: float) -> float:
    if value and not (math.isfinite(value) and value > 1):
        raise ValueError("wanted: a number above 1, or 0")
    return value


class LearnSettings(Section):
    """How Planner and Executor learn from what they did (docs/learning.md)."""

    enabled: bool = False
    """Learn from the stream of questions while it is answered (`mia run --learn`)."""
    supervised: bool = True
    """Reward against reference answers; else by peer review."""
    batch: int = Field(default=32, ge=1)
    """Questions in a batch of test-time learning, or in a step of a stage."""
    samples: int = Field(default=4, ge=1, le=64)
    """Rollouts of each question."""
    into: Literal["both", "memory", "weights", "nothing"] = "both"
    """What the rollouts of a stream go into."""
    report: Literal["best", "random", "shortest", "longest", "first"] = "best"
    """Which of a question's answers is reported: that of the plan which a model chooses, or by rule. By peer review it
    is always a random one of those that were accepted."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the questions of a stream."""
    reward: str = ""
    """A reward function of yours, as "module:function", or a reward service's address; empty: the paper's."""
    preset: Literal["default", "paper"] = "default"
    """The Executor's accuracy reward: 0 or 1; or as the paper's code has it."""
    weights: Literal["lora", "full"] = "lora"
    """Train a LoRA adapter, or all weights."""
    rank: int = Field(default=16, ge=1)
    """Of the LoRA adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """Of the LoRA adapter: its part is scaled by alpha / rank."""
    rate: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW: about 1e-3 for an adapter of the embedded model, 1e-6 to 1e-5 for large models."""
    warmup: int = Field(default=0, ge=0)
    """Optimizer steps over which the rate rises."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""
    passes: int = Field(default=1, ge=1)
    """Times that an update goes over its rollouts."""
    minibatch: int = Field(default=0, ge=0)
    """Rollouts to an optimizer step; 0: all of an update."""
    batch_tokens: int = Field(default=16_384, ge=1)
    """Tokens to a micro-batch, padding included; only memory and speed depend on it."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The policy's ratio is clipped below 1 - clip_low."""
    clip_high: float = Field(default=0.28, gt=0)
    """… and above 1 + clip_high."""
    dual_clip: Annotated[float, AfterValidator(_bound)] = 3.0
    """Bound of the loss of a token with a negative advantage, in multiples of it: above 1, or 0 for none."""
    aggregate: Literal["token-mean", "sequence-mean"] = "token-mean"
    """Average the loss over all tokens, or over each conversation first."""
    kl: float = Field(default=0.02, ge=0)
    """Weight of the divergence from the base model (k3)."""
    advantage: Literal["group", "success"] = "group"
    """What a rollout is worth: how much better it did than the others of its question (GRPO); or "success": 1 where its
    reward is at least `success`, and nothing is learnt from the others. The first learns from differences, of which the
    tries of a sure Planner have few; the second from all that went well."""
    success: float = 0.5
    """The reward from which on "success" counts a rollout."""
    replay: int = Field(default=0, ge=0)
    """Questions of the stream, the ones learnt last, whose rollouts go into each update again."""
    deviation: bool = True
    """Divide the advantage by the standard deviation of its group."""
    epsilon: float = Field(default=0.1, ge=0)
    """Added to that deviation: 1e-6 in the usual formula; more keeps small parts of a reward from filling the group."""
    recompute: bool = False
    """Take the probabilities before an update from the learner, and weigh tokens by what the sampler had; else the
    sampler's. Costs a pass more where an update has several steps."""
    importance_cap: float = Field(default=2.0, gt=0)
    """Largest weight of a token that another version sampled."""
    max_staleness: int = Field(default=1, ge=0)
    """Versions that a rollout may be behind; older ones are not learnt from."""
    temperature: float = Field(default=1.0, gt=0)
    """At which the learner's role is sampled."""
    first_temperature: Annotated[float | None, Field(ge=0)] = None
    """The same for the first try of a question in a stream; unset: as for all. With 0 and report = "first", what is
    reported is what the line says without learning, and only the other tries explore."""
    canary: int = Field(default=16, ge=0)
    """Questions of a stream that are held out, to examine each new version with; 0: every version is kept."""
    canary_margin: float = Field(default=0.05, ge=0, le=1)
    """How much worse a version may do there and still be kept."""
    keep: int = Field(default=8, ge=2)
    """Versions that a prune leaves."""


class ServeSettings(Section):
    """`mia serve` (docs/service.md)."""

    host: str = "127.0.0.1"
    """The address to listen at. Any other than this machine's own loopback needs a token."""
    port: int = Field(default=8321, ge=0, le=65_535)
    """0: any that is free."""
    hosts: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Names under which clients may ask for this server, beside those of loopback, e.g. that of a proxy before it; a
    page elsewhere that points its own name at this machine is refused."""
    token_env: VariableName = "MIA_SERVE_TOKEN"
    """The environment variable that may hold a token for everything."""
    tokens: str = ""
    """The file of tokens that `mia token add` makes; empty: `tokens.json` in `home`."""
    max_body_mb: float = Field(default=16.0, gt=0)
    """Of a request, in millions of bytes."""
    max_body_seconds: float = Field(default=30.0, gt=0)
    """Until it is all there; who sends more slowly is answered with 408."""
    max_concurrency: int = Field(default=256, ge=1)
    """Requests under way; more are sent away with 503 and told when to come again. Where there are tokens, half of them
    may be one token's; more of it are sent away with 429."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Of one token; more are sent away with 429. 0: no limit."""
    max_seconds: float = Field(default=900.0, gt=0)
    """For one request; what then is not finished is cancelled, and answered with 504."""
    max_scopes: int = Field(default=64, ge=1)
    """Scopes whose memories are held ready at a time."""
    traces: bool = False
    """Make OpenTelemetry spans; where they go is set as OpenTelemetry has it (OTEL_…)."""
    trace_texts: bool = False
    """Write questions, prompts and answers into the spans."""


class ReaderSettings(Section):
    """Texts of any length, read chunk by chunk in a fixed window (docs/reader.md)."""

    chunk_tokens: int = Field(default=5000, ge=16)
    """Tokens of text that are read at a time, at most."""
    memory_tokens: int = Field(default=1024, ge=16)
    """Tokens that the memory of a text may have."""
    reply_tokens: int = Field(default=0, ge=0)
    """Tokens of one reply; 0: as many as the memory has. A model that thinks before it writes needs more."""
    max_tokens: int = Field(default=0, ge=0)
    """Tokens of one text that are read: of a longer one its two ends, which is said. 0: all of it."""
    pages: bool = True
    """Read a long page that `fetch` brings for the question, instead of cutting it; where the window allows it."""
    tool_tokens: int = Field(default=100_000, ge=0)
    """The same as `max_tokens`, for what the Executor has read in one call. 0: all of it."""


class McpServerSettings(Section):
    """A server of the Model Context Protocol whose tools the Executor may call."""

    command: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """What starts it, where it speaks over stdin and stdout."""
    env: Annotated[tuple[VariableName, ...], BeforeValidator(_split)] = ()
    """Environment variables that it is given; no others of ours but PATH and HOME. A key belongs here and not into the
    command, which is stored and shown."""
    url: Address = ""
    """Where it listens, where it speaks streamable HTTP."""
    token_env: VariableName = ""
    """The environment variable that holds its bearer token."""
    allow: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """The tools of it that may be called; no others are."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """For one call."""
    start_seconds: float = Field(default=60.0, gt=0)
    """For its start: some programs are fetched first."""

    @model_validator(mode="after")
    def _one_way(self) -> McpServerSettings:
        if bool(self.command) == bool(self.url):
            raise ConfigError(
                "an MCP server needs one way to reach it.", wanted="either a command or a url", hint="mia doctor"
            )
        return self


class Config(BaseSettings):
    """Everything that can be set, in one page."""

    model_config = SettingsConfigDict(
        env_prefix="MIA_", env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    home: Path = Path(".mia")
    """Where indexes, memory, episodes and runs are kept unless told otherwise."""
    models: ModelsSettings = ModelsSettings()
    line: LineSettings = LineSettings()
    executor: ExecutorSettings = ExecutorSettings()
    budget: BudgetSettings = BudgetSettings()
    memory: MemorySettings = MemorySettings()
    search: SearchSettings = SearchSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    judge: JudgeSettings = JudgeSettings()
    run: RunSettings = RunSettings()
    learn: LearnSettings = LearnSettings()
    serve: ServeSettings = ServeSettings()
    reader: ReaderSettings = ReaderSettings()
    mcp: dict[ServerName, McpServerSettings] = {}
    """Servers whose tools the Executor may call, by a name of yours (docs/mcp.md)."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What it is given alone: `load_config` merges file, environment and flags."""
        return (init_settings,)

    @property
    def store_path(self) -> Path:
        return Path(self.memory.path) if self.memory.path else self.home / "memory.db"

    def resolved(self) -> dict[str, Any]:
        """The page as plain JSON data, secrets as "**********"."""
        page: dict[str, Any] = self.model_dump(mode="json")
        return page

    @property
    def digest(self) -> str:
        """The first 12 hex digits of the SHA-256 of the resolved page."""
        return hashlib.sha256(json.dumps(self.resolved(), sort_keys=True).encode()).hexdigest()[:12]


def load_config(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """The resolved page.

    `file`: a TOML file; None: `mia.toml` in the working folder, if there is one. `flags`: dotted names to values, e.g.
    {"models.default.model": "qwen3"}; a value of None means that the flag was not given. Raises ConfigError.
    """
    if file is None and Path("mia.toml").is_file():
        file = Path("mia.toml")
    page = _read_toml(file) if file is not None else {}
    merged = _merge(page, _Environment(Config)())
    for name, value in (flags or {}).items():
        if value is not None:
            merged = _merge(merged, _nest(name, value))
    try:
        return Config(**merged)
    except ValidationError as error:
        # Without its cause, which quotes the value.
        raise _wrong_setting(error, file) from None


class _Environment(EnvSettingsSource):
    """The settings in the environment: text, or JSON where a value begins like it. What is neither is for validation
    to refuse, which names the setting."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return json.loads(value) if value.lstrip().startswith(("{", "[")) else value
        except ValueError:
            return value


_SECRET = ("api_key", "api_key_env", "base_url", "url")
"""Settings whose wrong value is not shown."""
_NO_VALUE = ("missing", "extra_forbidden", "model_type")
"""Errors about a name or a whole section."""


def _wrong_setting(error: ValidationError, file: Path | None) -> ConfigError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    ours = first.get("ctx", {}).get("error")
    if isinstance(ours, ConfigError):
        return ConfigError(f"the setting '{name}' is wrong: {ours.got}", wanted=ours.wanted, hint=ours.hint)
    value = first["input"]
    plain = isinstance(value, str | int | float) and first["type"] not in _NO_VALUE and first["loc"][-1] not in _SECRET
    return ConfigError(
        f"the setting '{name}' is wrong: {first['msg']}{f' (got {value!r})' if plain else ''}.",
        hint=f"correct it in {file}, in the environment (MIA_…) or on the command line" if file else "mia --help",
    )


def differences(stored: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted names whose values differ between two resolved pages, sorted."""
    found: list[str] = []
    for key in sorted(stored.keys() | current.keys()):
        old, new = stored.get(key), current.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(prefix + key)
    return found


def resolve_url(settings_base_url: str) -> str:
    """The address of an endpoint: set, or the environment's; empty for OpenAI's own. Raises ConfigError."""
    if settings_base_url:
        return settings_base_url
    try:
        return _check_address(os.environ.get("OPENAI_BASE_URL", ""))
    except ConfigError as error:
        raise ConfigError(f"OPENAI_BASE_URL is wrong: {error.got}", hint=error.hint) from None


def resolve_key(settings_base_url: str, api_key: SecretStr, api_key_env: str) -> str:
    """The key for an endpoint: given, or from the named variable; OpenAI's own only where it belongs."""
    if api_key.get_secret_value():
        return api_key.get_secret_value()
    if api_key_env:
        if api_key_env not in os.environ:
            raise ConfigError(
                f"the environment has no variable '{api_key_env}', which api_key_env names.",
                hint=f"export {api_key_env}=…",
            )
        return os.environ[api_key_env]
    own = os.environ.get("OPENAI_BASE_URL", "")
    return os.environ.get("OPENAI_API_KEY", "") if settings_base_url in ("", own) else ""


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration '{file}': {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration '{file}' is no TOML: {error}.") from error


def _nest(name: str, value: Any) -> dict[str, Any]:
    head, _, rest = name.partition(".")
    return {head: _nest(rest, value) if rest else value}


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
