"""Settings: defaults ← file ← environment ← flags, one typed page, and keys that go only where they belong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from mia.config import Config, differences, load_config, resolve_key
from mia.errors import ConfigError
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
