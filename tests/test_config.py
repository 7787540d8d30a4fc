"""Settings: defaults ← file ← environment ← flags, one typed page, and keys that go only where they belong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from mia.config import Config, differences, load_config, resolve_key, resolve_url
from mia.embeddings import build_embedder
from mia.errors import ConfigError
from mia.models import build_models
from mia.types import Role

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MIA_MODELS__DEFAULT__MODEL"):
        monkeypatch.delenv(name, raising=False)


def test_each_source_overrules_the_one_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[models.default]\nmodel = "file"\ntemperature = 0.5\n[memory]\nfloor = 0.2\n')
    assert load_config(file).models.default.model == "file"
    monkeypatch.setenv("MIA_MODELS__DEFAULT__MODEL", "environment")
    assert load_config(file).models.default.model == "environment"
    config = load_config(file, {"models.default.model": "flag", "models.default.base_url": None})
    assert config.models.default.model == "flag"
    assert config.models.default.temperature == 0.5
    assert config.memory.floor == 0.2


def test_a_file_in_the_working_folder_is_found(tmp_path: Path) -> None:
    assert load_config().home == Path(".mia")
    (tmp_path / "mia.toml").write_text('home = "elsewhere"')
    assert load_config().home == Path("elsewhere")
    assert load_config().store_path == Path("elsewhere/memory.db")


def test_a_role_takes_what_it_leaves_out_from_the_default() -> None:
    flags = {"models.default.model": "small", "models.default.base_url": "http://a/v1", "models.planner.model": "large"}
    models = load_config(flags=flags).models
    assert (models.of(Role.PLANNER).model, models.of(Role.PLANNER).base_url) == ("large", "http://a/v1")
    assert models.of(Role.JUDGE).model == "small"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"models.default.modell": "x"}, "models.default.modell"),
        ({"line.replan": "always"}, "line.replan"),
        ({"executor.max_calls": 0}, "executor.max_calls"),
        ({"budget.run.money": "much"}, "budget.run.money"),
    ],
)
def test_a_wrong_setting_is_named(flags: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(flags=flags)


def test_a_wrong_environment_or_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIA_EXECUTOR__MAX_CALLS", "many")
    with pytest.raises(ConfigError, match=r"executor\.max_calls.*'many'"):
        load_config()
    (tmp_path / "broken.toml").write_text("[models")
    with pytest.raises(ConfigError, match="no TOML"):
        load_config(tmp_path / "broken.toml")
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "gone.toml")


def test_the_resolved_page_holds_no_secret_and_names_what_differs() -> None:
    one = load_config(flags={"models.default.api_key": SecretStr("planted-secret")})
    two = load_config(flags={"models.default.api_key": SecretStr("planted-secret"), "memory.k_positive": 3})
    assert "planted-secret" not in str(one.resolved())
    assert "planted-secret" not in repr(one)
    assert differences(one.resolved(), two.resolved()) == ["memory.k_positive"]
    assert one.digest != two.digest
    assert one.digest == load_config(flags={"models.default.api_key": SecretStr("planted-secret")}).digest


@pytest.mark.parametrize(
    "page",
    [
        '[models.default]\napi_key = ["planted-secret"]',
        '[models.default]\napi_key = {key = "planted-secret"}',
        '[models.default]\napi_key_env = "planted-secret"',
        '[models.default]\napi_key_env = ["planted-secret"]',
        '[models.default]\napi_keys = "planted-secret"',
        '[models.default]\nbase_url = ["planted-secret"]',
        '[models.default]\nmodel = ["planted-secret"]',
        '[models]\ndefault = "planted-secret"',
        '[models]\ndefault = ["planted-secret"]',
        'models = "planted-secret"',
        '[models.judge]\nbase_url = "http://user:planted-secret@host/v1"',
        '[models.default]\nbase_url = "planted-secret@host"',
        '[embeddings]\nbase_url = "https://user:planted-secret@host/v1"',
        '[search]\nurl = "http://user:planted-secret@host/retrieve"',
    ],
)
def test_no_error_shows_what_may_be_a_secret(tmp_path: Path, page: str) -> None:
    (tmp_path / "mine.toml").write_text(page)
    with pytest.raises(ConfigError) as raised:
        load_config(tmp_path / "mine.toml")
    assert "planted-secret" not in str(raised.value)
    assert raised.value.__cause__ is None
    if "@" in page:
        assert "api_key_env" in raised.value.hint


def test_an_address_of_the_environment_with_a_password_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_url("") == ""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://mine/v1")
    assert (resolve_url(""), resolve_url("http://a/v1")) == ("http://mine/v1", "http://a/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:planted-secret@mine/v1")
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL") as raised:
        resolve_url("")
    assert "planted-secret" not in str(raised.value)
    monkeypatch.setenv("MIA_MODELS__DEFAULT__MODEL", "m")
    for build in (lambda: build_models(load_config().models), lambda: build_embedder("openai", load_config())):
        with pytest.raises(ConfigError, match="OPENAI_BASE_URL"):
            build()


def test_the_environment_gives_lists_as_text_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("./docs, more", '["./docs", "more"]'):
        monkeypatch.setenv("MIA_SEARCH__CORPUS", given)
        assert load_config().search.corpus == ("./docs", "more")
    monkeypatch.setenv("MIA_SEARCH__CORPUS", "2024")
    assert load_config().search.corpus == ("2024",)
    monkeypatch.setenv("MIA_EXECUTOR__TOOLS", "search,fetch")
    assert load_config().executor.tools == ("search", "fetch")
    monkeypatch.setenv("MIA_MODELS__PLANNER", '{"model": "large"}')
    assert load_config().models.of(Role.PLANNER).model == "large"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("MIA_MODELS", "abc", "'models'"),
        ("MIA_MODELS__PLANNER", "{abc", r"'models\.planner'"),
        ("MIA_MODELS__DEFAULT__TYPO", "abc", r"'models\.default\.typo'"),
        ("MIA_EXECUTOR__TOOLS", "sarch", r"'executor\.tools\.0'.*\(got 'sarch'\)"),
        ("MIA_EXECUTOR__TOOLS", "[search", r"'executor\.tools\.0'"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=says):
        load_config()


@pytest.mark.parametrize(
    ("flags", "role"),
    [
        ({"models.default.context_window": 2048}, "default"),
        ({"models.planner.context_window": 1024}, "planner"),
        ({"models.default.max_tokens": 4096, "models.judge.context_window": 4096}, "judge"),
        ({"models.cold_start.max_tokens": 128_000}, "cold_start"),
    ],
)
def test_a_window_that_the_reply_fills_is_refused(flags: dict[str, object], role: str) -> None:
    with pytest.raises(ConfigError, match=rf"models\.{role}.*max_tokens = \d+.*context_window = \d+") as raised:
        load_config(flags=flags)
    assert f"models.{role}.max_tokens = " in raised.value.hint


def test_a_role_with_a_small_window_may_take_its_small_replies_from_the_default() -> None:
    flags = {"models.default.max_tokens": 512, "models.planner.context_window": 1024}
    assert load_config(flags=flags).models.of(Role.PLANNER).max_tokens == 512


def test_openais_key_goes_to_no_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "own")
    monkeypatch.setenv("OTHER_KEY", "other")
    none = SecretStr("")
    assert resolve_key("", none, "") == "own"
    assert resolve_key("http://stranger/v1", none, "") == ""
    assert resolve_key("http://stranger/v1", none, "OTHER_KEY") == "other"
    assert resolve_key("http://stranger/v1", SecretStr("given"), "OTHER_KEY") == "given"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://mine/v1")
    assert resolve_key("http://mine/v1", none, "") == "own"
    with pytest.raises(ConfigError, match="GONE_KEY"):
        resolve_key("http://stranger/v1", none, "GONE_KEY")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_the_example_configurations_load(path: Path) -> None:
    assert load_config(path).models.default.model


def test_every_setting_is_explained_or_plain_and_the_page_in_the_docs_is_true() -> None:
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    toml = page.partition("```toml\n")[2].partition("```")[0]
    assert load_config(flags=_flat(tomllib.loads(toml))) == load_config()
    for name in _names(Config):
        assert name in toml, (
            f"docs/configuration.md does not name the setting '{name}'; write it anew with `mia config`"
        )


def _flat(page: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in page.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _names(section: type) -> list[str]:
    names = []
    for name, field in section.model_fields.items():  # type: ignore[attr-defined]
        names.append(name)
        if hasattr(field.annotation, "model_fields"):
            names += _names(field.annotation)
    return names
