"""The reader of long texts learns what to keep of them (MemAgent, arXiv 2507.02259, section 3).

One sample is one reading: k chunks and the answer are k + 1 conversations that share nothing but the memory that one
of them wrote and the next one reads. The reward is that of the answer alone, by the strict verifier: the boxed text
is a reference, letter for letter. The advantage of a sample is its reward less the mean of its question's samples,
not divided by their deviation, and every conversation of the sample gets it; the loss is a mean over the tokens of
all conversations. `PAPER` holds these settings; the rest is a stage like any other (`mia.learn.stages`).

Questions come from texts of the offline world, each of a world of its own, or from a list of the user's.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mia.config import LearnSettings, ReaderSettings
from mia.errors import ConfigError, ContextOverflow, LearnError, ModelReplyError
from mia.judges.verifiers import strict
from mia.learn.reward_services import CustomReward
from mia.learn.rollouts import Dropped, Reward, RewardFunction, Said
from mia.learn.sources import AnsweringOf, ListSource, Marks, Tell, side_by_side
from mia.models.base import ChatModel
from mia.prompt import PromptStyle
from mia.reader.chunks import TokenCounter
from mia.reader.read import Reader, Reading
from mia.reader.texts import TextSource
from mia.types import Question, Role, Task
from mia.world.facts import World
from mia.world.longtexts import MOST_FACTS, LongText, make_text
from mia.world.seeds import TRAIN, VALIDATION, check_training

PAPER: Mapping[str, Any] = {
    "samples": 16,
    "deviation": False,
    "aggregate": "token-mean",
    "clip_low": 0.2,
    "clip_high": 0.2,
    "kl": 0.001,
}
"""Of `learn`, where nothing else is set: as MemAgent was trained. Its rate and batch are those of large models."""
MOST_CHUNKS = 8
"""The longest texts of a training in the world."""
_FILLED = 0.9
"""Of a chunk, on average, where it ends behind a sentence of the world's."""


@dataclass(frozen=True)
class LongQuestion:
    """A text, and what is asked of it."""

    task: Task
    text: str
    group: str = ""
    """What its mark is counted with in an exam, e.g. its world; empty: it stands for itself."""

    @classmethod
    def of(cls, made: LongText, group: str = "") -> LongQuestion:
        return cls(Task(question=Question(id=made.id, text=made.question), references=(made.answer,)), made.text, group)


@dataclass(frozen=True)
class Answered:
    """What became of a question."""

    task: Task
    reading: Reading

    @property
    def unheard(self) -> str:
        """Why nothing is known of the answer: the model could not be asked. Empty where it answered, or where it had
        only itself to blame: it said nothing, or too much."""
        failure = self.reading.failure
        if failure is None or isinstance(failure, ModelReplyError | ContextOverflow):
            return ""
        return f"the reading was not finished: {type(failure).__name__}"

    @property
    def score(self) -> float:
        """By the strict verifier: 0 or 1."""
        return strict(self.reading.reply, self.task.references)


@dataclass(frozen=True)
class ReaderStage:
    """The reader learns. Chunks are counted in the tokens of the model that learns, whatever is wrapped around it."""

    settings: ReaderSettings
    style: PromptStyle
    counter: TokenCounter
    name: str = "reader"
    role: Role = Role.READER

    def task(self, situation: LongQuestion) -> Task:
        return situation.task

    async def answer(self, situation: LongQuestion, model: ChatModel, *, exam: bool = False) -> Answered:
        """Raises ConfigError where the model's window is too small, RecordError for a text without anything in it."""
        reader = Reader(model, self.settings, style=self.style, counter=self.counter)
        with TextSource.of(situation.text, situation.task.question.id) as source:
            (reading,) = await reader.read([situation.task.question], source)
        return Answered(situation.task, reading)

    def mark(self, outcome: Answered) -> float | None:
        return None if outcome.unheard else outcome.score

    def told(self, outcomes: Sequence[Answered]) -> dict[str, Any]:
        """Means over the samples: chunks, and of these the share after which the memory was cut, or was not written."""
        readings = [outcome.reading for outcome in outcomes]
        chunks = sum(reading.chunks for reading in readings)
        return {
            "chunks": chunks / max(1, len(readings)),
            "cut": sum(reading.cut for reading in readings) / max(1, chunks),
            "unwritten": sum(reading.kept for reading in readings) / max(1, chunks),
        }


async def strict_reward(task: Task, outcome: Answered, said: Sequence[Said]) -> Reward | Dropped:
    """1 or 0. A reading that the world broke off gives none."""
    if outcome.unheard:
        return Dropped(task.question.id, outcome.unheard)
    return Reward(outcome.score, {"boxed": float(outcome.reading.form == "boxed")})


def reading_reward(settings: LearnSettings) -> RewardFunction[Answered]:
    """The strict verifier, or the user's own function of (task, `Answered`, what was said). Raises ConfigError for a
    reward service, which is handed plans and replans, and for a function that is none."""
    if "://" in settings.reward:
        raise ConfigError(
            f"learn.reward is the service '{settings.reward}', and the reader has no answers of the form it takes.",
            wanted='"module:function", or nothing: the strict verifier',
        )
    return CustomReward.load(settings.reward) if settings.reward else strict_reward


# ── the world ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class WorldTexts:
    """Which texts a training draws from: one of each world, whose question asks for one fact or for two."""

    first_seed: int
    """The first world; those after it follow, up to the end of the training split."""
    chunks: int = MOST_CHUNKS
    """Of each text, about."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a world that is not for training, and for no chunks."""
        if self.chunks < 1:
            raise ConfigError(f"texts of {self.chunks} chunks.", wanted="a whole number from 1 up")
        check_training(self.first_seed)


class WorldTextSource:
    """Texts of one training world after the other."""

    def __init__(self, texts: WorldTexts, settings: ReaderSettings, counter: TokenCounter) -> None:
        self._texts = texts
        self._tokens = text_tokens(texts.chunks, settings)
        self._chunk_tokens = settings.chunk_tokens
        self._count = counter.count
        self._place = 0
        """Questions that were drawn and absorbed."""
        self._drawn = 0

    def page(self) -> dict[str, Any]:
        return {"kind": "world texts", "chunk_tokens": self._chunk_tokens, **asdict(self._texts)}

    def check(self, count: int) -> None:
        """There are always more."""

    async def prepare(self, tell: Tell) -> None:
        """Nothing: texts are made when they are drawn."""

    async def draw(self, count: int) -> list[LongQuestion]:
        self._drawn = count
        return [self._make(number) for number in range(self._place, self._place + count)]

    def _make(self, number: int) -> LongQuestion:
        worlds = range(self._texts.first_seed, TRAIN.stop)
        round_, place = divmod(number, len(worlds))
        facts = random.Random(f"facts {number}").randint(1, MOST_FACTS)
        world = World.make(worlds[place])
        return LongQuestion.of(make_text(world, round_, self._tokens, self._count, facts=facts))

    async def absorb(self, groups: Sequence[tuple[LongQuestion, Sequence[Answered]]]) -> None:
        self._place += self._drawn
        self._drawn = 0

    async def save(self, folder: Path) -> None:
        (folder / "texts.json").write_text(json.dumps({"place": self._place}), encoding="utf-8")

    async def restore(self, folder: Path) -> None:
        """Raises LearnError."""
        try:
            self._place = int(json.loads((folder / "texts.json").read_text(encoding="utf-8"))["place"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LearnError(
                f"the place among the world's texts, kept in '{folder}', cannot be read ({error}).",
                wanted="that of a checkpoint, whole",
            ) from error

    async def close(self) -> None:
        """Nothing to let go of."""


def text_tokens(chunks: int, settings: ReaderSettings) -> int:
    """Tokens of a text that comes to so many chunks: they end behind a sentence, a little before they are full."""
    return max(1, round(chunks * settings.chunk_tokens * _FILLED))


def world_questions(
    seeds: Sequence[int],
    each: int,
    chunks: int,
    settings: ReaderSettings,
    count: Callable[[str], int],
    *,
    shifted: bool = False,
) -> list[LongQuestion]:
    """The same questions whenever they are asked for: so many texts of each world, by turns with one fact and with
    two."""
    worlds = ((seed, World.make(seed, shifted=shifted)) for seed in seeds)
    return [
        LongQuestion.of(
            make_text(world, number, text_tokens(chunks, settings), count, facts=1 + number % MOST_FACTS), str(seed)
        )
        for seed, world in worlds
        for number in range(each)
    ]


def exam_seeds(worlds: int) -> range:
    """The validation worlds of an exam. Raises ConfigError for fewer than two, and for more than there are."""
    if not 2 <= worlds <= len(VALIDATION):
        raise ConfigError(f"{worlds} worlds are no exam.", wanted=f"2 to {len(VALIDATION):,}")
    return VALIDATION[:worlds]


# ── texts of one's own ────────────────────────────────────────────────────────────────────────────────────────────


class TextListSource(ListSource[LongQuestion]):
    """A list of questions, in another order in each pass over it."""

    def page(self) -> dict[str, Any]:
        return {"kind": "texts", "seed": self.seed, "ids": [one.task.question.id for one in self.items]}

    async def draw(self, count: int) -> list[LongQuestion]:
        """Raises ConfigError for more questions than the list has."""
        return self.next(count)


class TextExam:
    """A list of questions about texts, asked side by side."""

    def __init__(self, questions: Sequence[LongQuestion], *, page: Mapping[str, Any] | None = None) -> None:
        """`page`: what decides the questions; None: their ids. Raises ConfigError for fewer than two."""
        if len(questions) < 2:
            raise ConfigError(f"{len(questions)} questions are no exam.", wanted="two or more")
        self._questions = tuple(questions)
        self._page = page or {"kind": "texts", "ids": [one.task.question.id for one in questions]}

    def page(self) -> dict[str, Any]:
        return dict(self._page)

    async def hold(self, answering: AnsweringOf[LongQuestion, Answered], tell: Tell) -> Marks:
        """Raises what `answering` raises."""
        done = 0

        async def one(question: LongQuestion) -> Answered:
            nonlocal done
            outcome = await answering(question)
            done += 1
            tell(done, len(self._questions))
            return outcome

        outcomes = await side_by_side(one(question) for question in self._questions)
        marks: Marks = {}
        for question, outcome in zip(self._questions, outcomes, strict=True):
            if not outcome.unheard:
                marks.setdefault(question.group or question.task.question.id, []).append(outcome.score)
        return marks

    async def close(self) -> None:
        """Nothing to let go of."""
