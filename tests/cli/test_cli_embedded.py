"""What answers where nothing is configured: which settings that makes, and when it does not happen."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model
from program import Program

from mia.cli import embedded, endpoints
from mia.cli.embedded import announce_embedded, embedded_default, embedded_reader
from mia.cli.stages import one_line
from mia.config import WORLD_SEED, Config, ModelSettings, ModelsSettings, ReaderSettings, load_config
from mia.errors import MissingExtra
from mia.types import Role
from mia.world import preset
from mia.world.facts import World
from mia.world.language import read_question
from mia.world.questions import tasks

DOCS = Path(__file__).parents[2] / "examples" / "solar_system" / "docs"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of its own, on a machine with the libraries and without servers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embedded, "_LIBRARIES", ("json",))
    monkeypatch.setattr(endpoints, "LOCAL_ENDPOINTS", {})


def made(config: Config) -> Config:
    found = embedded_default(config)
    assert found is not None
    return found


def test_with_nothing_configured_every_role_is_the_embedded_model_in_a_home_of_its_own() -> None:
    config = made(load_config())
    for role in Role:
        model = config.models.of(role)
        assert (model.provider, model.path, model.prompts) == ("local", "", "compact")
        assert (model.context_window, model.max_tokens) == (1536, 256)
    assert config.models.cold_start is None
    assert (config.search.engine, config.search.k) == ("world", preset.PASSAGES)
    assert config.search.world == load_config().search.world
    memory = config.memory
    assert (memory.embedder, memory.k_positive, memory.k_negative) == ("hashing", 3, 1)
    assert memory.coverage_weight == preset.MEMORY["coverage_weight"]
    assert config.line.max_reflections == 1
    assert config.store_path == Path(".mia/world/memory.db")
    # A long text fits its window, for whoever asks it to read (`read_document` of MCP).
    assert config.reader.chunk_tokens == preset.READER["chunk_tokens"]
    assert config.reader.memory_tokens == preset.READER["memory_tokens"]


def test_the_page_is_one_that_the_configuration_itself_accepts() -> None:
    page = made(load_config(flags={"models.default.max_tokens": 4096, "memory.k_positive": 5})).resolved()
    assert Config(**page).resolved() == page


@pytest.mark.parametrize(
    "flags",
    [
        {"models.default.model": "qwen3"},
        {"models.default.base_url": "http://localhost:11434/v1"},
        {"models.default.provider": "replay", "models.default.path": "rec.jsonl"},
        {"models.default.provider": "local", "models.default.path": "./folder"},
        {"models.judge.model": "large"},
        {"models.judge.base_url": "http://localhost:11434/v1"},
        {"models.cold_start.model": "large"},
        {"search.corpus": ("docs",)},
        {"search.index": "mine"},
        {"search.engine": "searxng"},
        {"executor.tools": ("search", "fetch")},
    ],
)
def test_whoever_configured_a_model_documents_or_tools_gets_no_other(flags: dict[str, object]) -> None:
    assert embedded_default(load_config(flags=flags)) is None


def test_file_and_environment_count_as_flags_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mia.toml").write_text('[search]\ncorpus = ["docs"]\n')
    assert embedded_default(load_config()) is None
    Path("mia.toml").write_text("[search]\nworld = 7\n[models.default]\nthreads = 2\ntemperature = 0.5\n")
    assert made(load_config()).search.world == 7
    assert made(load_config()).models.default.threads == 2
    monkeypatch.setenv("MIA_MODELS__DEFAULT__MODEL", "qwen3")
    assert embedded_default(load_config()) is None


def test_an_index_in_the_home_keeps_the_embedded_model_away(program: Program) -> None:
    assert program("index", DOCS).code == 0
    assert embedded_default(load_config()) is None


def test_what_is_set_stays_but_for_what_would_mix_a_world_with_real_work() -> None:
    flags = {
        "search.engine": "world",
        "search.k": 4,
        "memory.k_negative": 0,
        "memory.path": "real.db",
        "line.max_reflections": 0,
        "line.replan": "never",
        "models.planner.temperature": 0.3,
        "models.record": "rec.jsonl",
        "home": "elsewhere",
    }
    config = made(load_config(flags=flags))
    assert (config.search.k, config.memory.k_negative, config.memory.k_positive) == (4, 0, 3)
    assert (config.line.max_reflections, config.line.replan) == (0, "never")
    assert config.store_path == Path("elsewhere/world/memory.db")
    assert config.models.planner is None
    assert config.models.record == "rec.jsonl"


def test_without_its_library_it_says_what_to_type(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_LIBRARIES", ("json", "no_such_library"))
    with pytest.raises(MissingExtra, match="'no_such_library'"):
        embedded_default(load_config())
    # With documents it is not needed.
    assert embedded_default(load_config(flags={"search.corpus": ("docs",)})) is None
    Path("questions.jsonl").write_text('{"question": "Who?"}\n')
    for command in (("ask", "Who?"), ("run", "questions.jsonl")):
        ended = program(*command)
        assert (ended.code, ended.stdout) == (1, "")
        assert ended.stderr.startswith("Error: no model and no documents are configured")
        assert "[local]" in ended.stderr
        assert "--base-url URL --model NAME" in ended.stderr
    assert not Path(".mia").exists()


async def test_one_line_says_who_answers_and_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    await announce_embedded(made(load_config(flags={"search.world": 7})), ("ask", "Who's there?"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "the small embedded model answers, from the offline world 7." in line
    command = ["mia", "ask", "Who's there?", "--corpus", "./docs", "--base-url", "URL", "--model", "NAME"]
    assert line.endswith(shlex.join(command))


@needs_embedded_model
def test_ask_and_run_say_in_one_line_who_answers(program: Program) -> None:
    (task,) = tasks(World.make(WORLD_SEED), 1)
    question = task.question.text
    Path("questions.jsonl").write_text(json.dumps({"id": "q", "question": question}))
    for command in (("ask", question), ("run", "questions.jsonl")):
        ended = program(*command)
        assert ended.code == 0
        first = ended.stderr.splitlines()[0]
        assert first.startswith("No model and no documents are configured: the small embedded model answers")
        assert "--corpus ./docs --base-url URL --model NAME" in first
    assert Path(".mia/world/memory.db").exists()
    assert not Path(".mia/memory.db").exists()
    shown = json.loads(program("--home", ".mia/world", "show", "last", "--json").stdout)
    assert shown["question"]["text"] == question


STRANGE = [
    "Who found Titan?",
    "What is the mayor of Paris?",
    f"What is the weather of {World.make(WORLD_SEED).entities['city'][0]}?",
    "What is the mayor?",
    "unknown " * 500,
]


@pytest.mark.parametrize("question", STRANGE)
def test_what_the_world_cannot_be_asked_is_refused_before_anything_happens(question: str, program: Program) -> None:
    ended = program("ask", question, "--frozen")
    assert (ended.code, ended.stdout) == (2, "")
    said, wanted, attempt, other = ended.stderr.splitlines()
    assert said.startswith(f"Error: no model and no documents are configured, and the offline world {WORLD_SEED}")
    assert "knows 60 names and 20 relations" in said
    assert one_line(question, 80) in said
    assert "`mia world show`" in wanted
    assert other.endswith("--frozen --corpus ./docs --base-url URL --model NAME")
    assert not Path(".mia").exists()
    # What it says to type is the same command with a question that this world answers.
    name, *typed = shlex.split(attempt.removeprefix("  Try: "))
    assert (name, typed[0], typed[2:]) == ("mia", "ask", ["--frozen"])
    assert f'"{typed[1]}"' in wanted
    chain = read_question(typed[1])
    assert chain is not None
    assert World.make(WORLD_SEED).answer(chain)


def test_the_example_is_of_the_world_that_is_configured(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIA_SEARCH__WORLD", "7")
    (task,) = tasks(World.make(WORLD_SEED), 1)
    ended = program("ask", task.question.text)
    assert ended.code == 2
    assert "the offline world 7," in ended.stderr
    chain = read_question(shlex.split(ended.stderr.splitlines()[2])[3])
    assert chain is not None
    assert World.make(7).answer(chain)


def test_a_run_with_a_question_that_is_not_of_the_world_asks_none(program: Program) -> None:
    stream = [task.question.text for task in tasks(World.make(WORLD_SEED), 3)]
    lines = [*stream[:2], "Who found Titan?", stream[2], "Who found Ceres?"]
    Path("questions.jsonl").write_text(
        "\n".join(json.dumps({"id": f"q{number}", "question": line}) for number, line in enumerate(lines))
    )
    ended = program("run", "questions.jsonl")
    assert (ended.code, ended.stdout) == (2, "")
    assert "2 of the 5 questions, the first 'q2': 'Who found Titan?'" in ended.stderr
    assert "mia ask 'What is the " in ended.stderr
    assert "mia run questions.jsonl --corpus ./docs --base-url URL --model NAME" in ended.stderr
    assert not Path(".mia").exists()
    assert not Path("runs").exists()


def test_the_embedded_reader_is_served_as_it_was_trained_but_for_what_is_set() -> None:
    local = ModelSettings(provider="local")
    config = embedded_reader(Config(models=ModelsSettings(default=local)))
    reader = config.models.of(Role.READER)
    assert (reader.prompts, reader.context_window) == ("compact", preset.MODEL["context_window"])
    assert config.reader.chunk_tokens == preset.READER["chunk_tokens"]
    assert config.models.default == local
    own = Config(
        models=ModelsSettings(default=ModelSettings(provider="local", prompts="full")),
        reader=ReaderSettings(chunk_tokens=128),
    )
    kept = embedded_reader(own)
    assert (kept.models.of(Role.READER).prompts, kept.reader.chunk_tokens) == ("full", 128)
    assert kept.reader.memory_tokens == preset.READER["memory_tokens"]
