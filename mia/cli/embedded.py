"""What answers where nothing is configured: the embedded model, in the offline world.

Never over documents of the user: where there are some and no model, passages are shown instead (`mia.cli.passages`).
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from mia.cli import output
from mia.cli.endpoints import advise
from mia.cli.stages import one_line
from mia.errors import MissingExtra, RecordError, install_hint

if TYPE_CHECKING:
    from mia.config import Config, ModelSettings, ModelsSettings, Section
    from mia.types import Question

    SectionKind = TypeVar("SectionKind", bound=Section)

WORLD_FOLDER = "world"
"""In the home: a world's memory, apart from what is remembered of the user's own questions."""

_LIBRARIES = ("torch", "transformers")
_SHOWN_QUESTION = 80
"""Characters of a question that an error quotes."""


def names_model(config: Config) -> bool:
    """Whether any role's model is named, or comes from elsewhere than an endpoint."""
    return any(settings.model or settings.provider != "openai" for settings in _sections(config))


def names_documents(config: Config) -> bool:
    """Whether there is something of the user's to search in: a corpus or an index that is named, an index in the home
    (which is searched where none is named), or an engine of the web."""
    from mia.search.documents import INDEX_MARK

    search = config.search
    if search.engine != "corpus":
        return search.engine != "world"
    return bool(search.corpus or search.index) or any((config.home / "indexes").glob(f"*/{INDEX_MARK}"))


def missing_library() -> str:
    """The first library that a model in this process lacks; empty where it can run."""
    return next((library for library in _LIBRARIES if find_spec(library) is None), "")


def embedded_default(config: Config) -> Config | None:
    """The settings under which the embedded model answers in the offline world; None where a model, an endpoint,
    documents, another engine or other tools than `search` are configured.

    What is set of memory, line and search stays, but for what would mix a world with real work: the home becomes a
    folder in the home, and the memory lies in it. Of the models, only what is set of a model in this process (device,
    threads, batch) stays. Raises MissingExtra.
    """
    address = any(settings.base_url for settings in _sections(config))
    if names_model(config) or address or names_documents(config) or config.executor.tools != ("search",):
        return None
    missing = missing_library()
    if missing:
        raise MissingExtra(
            "no model and no documents are configured, and the embedded model, which then answers in the offline "
            f"world, needs the Python package '{missing}', which is not installed.",
            hint=f"{install_hint('local')}; or name your own: mia ask … --corpus ./docs --base-url URL --model NAME "
            "(`mia doctor` finds endpoints on this machine)",
        )
    from mia.world import preset

    memory = config.memory.model_copy(update={"path": ""})
    return embedded_reader(
        config.model_copy(
            update={
                "home": config.home / WORLD_FOLDER,
                "models": _models(config),
                "search": filled(config.search.model_copy(update={"engine": "world"}), k=preset.PASSAGES),
                "memory": filled(memory, **preset.MEMORY),
            }
        )
    )


def embedded_reader(config: Config) -> Config:
    """The settings under which the embedded model reads long texts of the offline world, where nothing else is set."""
    from mia.types import Role
    from mia.world import preset

    adapter = str(preset.READING) if preset.READING.is_dir() else ""
    model = filled(config.models.of(Role.READER), **preset.MODEL, adapter=adapter)
    return config.model_copy(
        update={
            "models": config.models.model_copy(update={"reader": model}),
            "reader": filled(config.reader, **preset.READER),
        }
    )


def can_read_here(questions: Sequence[Question]) -> bool:
    """Whether the embedded model can be asked these about a long text: they ask as the offline world does, and what it
    runs on is installed."""
    from mia.world.longtexts import MOST_FACTS, read_asking

    asked = [len(read_asking(question.text)) for question in questions]
    return not missing_library() and all(1 <= facts <= MOST_FACTS for facts in asked)


async def announce_embedded(config: Config, typed: Sequence[str]) -> None:
    """One line: who answers, and what to type for a real endpoint. `config`: with the embedded settings."""
    advice = await advise(config, typed, documents=True)
    output.warn(
        "No model and no documents are configured: the small embedded model answers, from the offline world "
        f"{config.search.world}. For your own, {advice.says}: {advice.command}"
    )


async def check_askable(questions: Sequence[Question], config: Config, typed: Sequence[str]) -> None:
    """Raises RecordError where a question is not about this world, in its language: the embedded model knows no other,
    and would make something up. `config`: with the embedded settings."""
    from mia.world.facts import World
    from mia.world.language import RELATIONS, write_question
    from mia.world.questions import chains

    world = World.make(config.search.world)
    names = frozenset(name for kind in world.entities.values() for name in kind)
    strange = [question for question in questions if not _is_about(names, question)]
    if not strange:
        return
    quoted = f"'{one_line(strange[0].text, _SHOWN_QUESTION)}'"
    if len(questions) > 1:
        quoted = f"{len(strange)} of the {len(questions)} questions, the first '{strange[0].id}': {quoted}"
    example = write_question(next(chains(world)), 0)
    asking = [example if word.strip() == strange[0].text else word for word in typed]
    if asking == list(typed):
        asking = ["ask", example]
    advice = await advise(config, typed, documents=True)
    raise RecordError(
        f"no model and no documents are configured, and the offline world {world.seed}, which is asked then, knows "
        f"{len(names)} names and {len(RELATIONS)} relations between them. It cannot be asked {quoted}.",
        wanted=f'a question about these names, such as "{example}" (`mia world show` prints more of them)',
        hint=f"{shlex.join(('mia', *asking))}\n  For questions of your own, {advice.says}: {advice.command}",
    )


def _is_about(names: Collection[str], question: Question) -> bool:
    from mia.world.language import read_question

    chain = read_question(question.text)
    return chain is not None and chain.entity in names


def _sections(config: Config) -> list[ModelSettings]:
    """How each role's model is reached."""
    from mia.types import Role

    sections = [config.models.of(role) for role in Role]
    return sections if config.models.cold_start is None else [*sections, config.models.of("cold_start")]


def _models(config: Config) -> ModelsSettings:
    from mia.config import ModelsSettings
    from mia.world import preset

    own = {name: getattr(config.models.default, name) for name in ("device", "threads", "batch")}
    return ModelsSettings(default=preset.model_settings(**own), record=config.models.record)


def filled(section: SectionKind, **values: Any) -> SectionKind:
    """The section with these values where nothing else was set."""
    return section.model_copy(
        update={name: value for name, value in values.items() if name not in section.model_fields_set}
    )
