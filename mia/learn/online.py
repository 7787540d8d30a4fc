"""Test-time learning: a stream of questions that is answered, and learnt from while it is (mia.md, section 5).

    a question:  try n times with the version that answers → reward → choose the answer to report → its score is fixed
    then:        credit and remember (memory) → the rollouts wait in the spool (weights)
    a batch:     rollouts → candidate version → canary → it answers from now on, or never

Always true:
- The score of a question is on the disk before any of its tries is learnt from, in memory or weights.
- The tries of a question share one recall, and never see each other's memories. What was shown is credited once, under
  the id of the reported answer: a later verdict on it takes the place of that credit.
- Canary questions are answered once, and go neither into the memory nor into a batch.
- What the rollouts go into (`learn.into`) changes nothing of how they are made and judged: four arms of an experiment
  differ in that alone. Without the rollouts, the memory takes in the reported answer, as in any other run.
- Reference answers stay with the judge and the reward function; what is written and handed on holds none.
- A death at any instant loses no question that was scored, and has none learnt twice: whatever is written twice is
  known by its id (see `spool.py` and `trainers.py`).

The Planner learns; all others are frozen. Many learners may work side by side in one process, each with its own team,
folder and store of versions, over one model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mia.config import LearnSettings
from mia.episode import answer
from mia.errors import ConfigError, LearnError, MiaError
from mia.events import OnEvent, ignore
from mia.learn.adapters import AdapterStore, State, Version
from mia.learn.canary import CanaryResult, examine
from mia.learn.folder import write_whole
from mia.learn.publishing import Publisher
from mia.learn.rewards import build_reward
from mia.learn.rollouts import Dropped, RewardFunction, Rollout, Sampled, require_tokens, roll_out
from mia.learn.selection import accepted, best, by_rule, heard, majority
from mia.learn.sources import FoundOnce, side_by_side
from mia.learn.spool import Fate, Group, Spool, Wiped, append_line, each_line, read_rollouts
from mia.learn.trainers import Learnt, Trainer, made_of
from mia.models.base import ChatModel, ChatRequest, Price, TokenModel, TokenReply
from mia.models.ledger import Account, Budget, Ledger
from mia.models.memo import MemoModel
from mia.redaction import Redactor
from mia.team import Team
from mia.types import Episode, MemoryKind, Outcome, Role, Task, Verdict, new_id

FORMAT = 1
EXAMINATIONS = 3
"""Of one candidate, where somebody changes what answers while it is examined."""
UNHEARD = 3
"""Questions in a row that could not be asked, after which a stream stops."""
_MAY_DIFFER = frozenset({"enabled", "keep", "canary_margin"})
"""Settings that a stream may go on with otherwise."""
_TRY = re.compile(r"(ep-[0-9a-f]{20})\.\d+")
"""The id of a try that is not reported: that of the answer that is, and its number."""


@dataclass(frozen=True)
class Training:
    """What the weights learn with; only where the rollouts go into them."""

    store: AdapterStore
    trainer: Trainer
    publisher: Publisher


@dataclass(frozen=True)
class Score:
    """A question as it was scored: ids and verdicts, no text. None stands for what nobody could judge."""

    question_id: str
    epoch: int
    episode_id: str
    """Of the reported answer."""
    version: str
    """The version that answered; empty: the weights to begin with."""
    correct: bool | None
    canary: bool = False
    by_rule: Mapping[str, bool | None] = field(default_factory=dict)
    """Whether the answer that another way of choosing takes is correct."""
    tries: tuple[bool | None, ...] = ()
    rewards: tuple[float, ...] = ()
    dropped: tuple[str, ...] = ()
    """Why a try gave no sample."""

    @classmethod
    def of(cls, group: Group) -> Score:
        tries = tuple(map(_correct, group.episodes))
        return cls(
            question_id=group.question_id,
            epoch=group.epoch,
            episode_id=group.episode.id,
            version=group.version,
            correct=tries[group.reported],
            canary=group.canary,
            by_rule={rule: tries[index] for rule, index in group.by_rule.items()},
            tries=tries,
            rewards=tuple(rollout.reward for rollout in group.rollouts),
            dropped=tuple(one.why for one in group.dropped),
        )


@dataclass(frozen=True)
class Update:
    """One update of the weights, as it went."""

    parent: str
    questions: int
    learnt: Learnt
    canary: CanaryResult | None = None
    """None: no version came of it."""

    @property
    def kept(self) -> bool:
        return self.canary is not None and self.canary.kept


@dataclass(frozen=True)
class _Asked:
    """A question in one pass over its stream."""

    task: Task
    epoch: int
    id: str
    """Of the episode that is reported."""
    on_event: OnEvent

    @property
    def place(self) -> str:
        return f"{self.task.question.id}\n{self.epoch}"


class OnlineLearner:
    """One stream. `start` it, hand it tasks (`run`, or `answer_batch`, or `submit` and `flush`), and `close` it."""

    def __init__(
        self,
        team: Team,
        model: TokenModel,
        settings: LearnSettings,
        folder: Path,
        *,
        training: Training | None = None,
        reward: RewardFunction[Episode] | None = None,
        seed: int = 0,
        at_once: int = 32,
        greedy: bool = False,
        question_budget: Budget = Budget(),
        account: Account | None = None,
        redactor: Redactor | None = None,
        on_event: OnEvent = ignore,
        on_scored: Callable[[Group], Awaitable[None]] | None = None,
        on_update: Callable[[Update], None] = lambda update: None,
        without_erased: Callable[[Group], Group | None] = lambda group: group,
        keep: int | None = None,
    ) -> None:
        """`team`: who answers; its memory is what is learnt into. `model`: the Planner's, asked for the tries.
        `folder`: where the stream is kept; what is there already is gone on with. `reward`: instead of the one that the
        settings name. `at_once`: tries under way together. `greedy`: the Executor answers at temperature 0 where
        nothing else is said, so that equal requests need be answered once. `account`: of a budget over the whole
        stream. `on_scored`: called once a score is on the disk, and again after a death, if need be. `without_erased`:
        what of an answered question may be kept, by what was erased since it was asked (None: nothing of it); asked in
        a thread, whenever something is kept. `keep`: so many scores, updates and unanswered questions are held in
        memory, the latest; None: all. Of every other question its id alone is held.

        Raises ConfigError for a team or settings that cannot learn so, LearnError for a folder that cannot be used.
        """
        check(team, settings, training)
        self.settings = settings
        self.scores: list[Score] = []
        """All of them so far, or the last `keep`, in the order in which they were fixed."""
        self.updates: list[Update] = []
        """Those of this process."""
        self.unanswered: dict[str, str] = {}
        """Question id → why its model could not be asked; it stays open."""
        self._keep = keep
        self.stopped = ""
        """Why the stream ended early, if it did."""
        self.trouble: MiaError | None = None
        """What kept the weights from learning in the background; answers went on."""
        self._team = replace(
            team,
            line=team.line.model_copy(update={"judge": "each"}),
            executor=team.executor.asking(MemoModel(team.executor.model, greedy=greedy)),
            learner=None,
        )
        assert team.planner is not None
        self._planner = team.planner
        self._model = model
        self._examinee = MemoModel(model)
        self._training = training
        self._reward = reward or build_reward(settings, Role.PLANNER, tuple(team.executor.tools))
        self._seed = seed
        self._budget = question_budget
        self._account = account
        self._on_event = on_event
        self._on_scored = on_scored
        self._on_update = on_update
        self._without_erased = without_erased
        self._tries = asyncio.Semaphore(max(1, at_once))
        # More than fit, so that the last try of one question does not leave the others idle.
        self._questions = asyncio.Semaphore(max(1, 2 * at_once // settings.samples))
        self._at_once = at_once
        self._unheard_in_a_row = 0
        self._folder = folder
        self._spool = Spool(folder / "spool", redactor)
        try:
            self._run = _open_page(folder / "stream.json", settings, seed)
            self._passes: dict[str, int] = {}
            """Question id → the passes in which it was answered, as bits: a stream may go on for months."""
            self._begun: dict[str, int] = {}
            """Question under way → the pass that comes after those that it is under way in."""
            self._held_out: set[str] = set()
            for page in each_line(folder / "scores.jsonl"):
                self._note(_load_score(page))
        except BaseException:
            self._spool.close()
            raise
        self._serving = Serving(training)
        self._canary: list[Task] = []
        self._settling: set[asyncio.Task[None]] = set()
        """Groups that are taken in, whoever still waits for them."""
        self._writing = asyncio.Lock()
        self._consolidating = asyncio.Lock()
        self._moving = asyncio.Lock()
        """Whoever puts a group into the spool, or moves one in it, after a look at what was erased; and who erases."""
        self._learning = asyncio.Lock()
        self._learnt = asyncio.Condition()
        self._background: asyncio.Task[None] | None = None
        self._busy = False
        """The background is at work."""
        self._due = 0
        """So many groups of the spool, the oldest, are for the next updates; a batch is not learnt by halves."""
        self._broken_off = False
        """An update did not come to its end: something of the spool may have been learnt."""

    @property
    def run_id(self) -> str:
        """In the episodes' `run`."""
        return self._run

    @property
    def version(self) -> str:
        """The version that answers now, or did last; empty: the weights to begin with."""
        return self._serving.current

    @property
    def is_learning(self) -> bool:
        """Whether the weights learn in the background just now."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Questions whose rollouts the weights have not learnt yet."""
        return len(self._spool.ready())

    def holds_out(self, question_id: str) -> bool:
        """Whether this question, if it were submitted now, is one of the canary: never learnt from."""
        return question_id in self._held_out or len(self._held_out) < self._canary_size

    # ── a whole stream ────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, tasks: Sequence[Task]) -> None:
        """Answer and learn all of them, in as many passes as the settings say; the first `learn.canary` are held out.
        What was scored before is not asked again.

        Raises ConfigError where nothing would be left to learn from, LearnError, StoreError and ModelError.
        """
        held = self._canary_size
        if held >= len(tasks):
            raise ConfigError(
                f"the stream has {len(tasks)} questions, and {held} of them would be held out for the canary.",
                wanted="more questions than that",
                hint=f"learn.canary = {len(tasks) // 4}",
            )
        await self.start(tasks[:held])
        await side_by_side(
            self._answer_held_out(self._once(task)) for task in tasks[:held] if not self._was_answered(task, 0)
        )
        stream = tasks[held:]
        for epoch in range(self.settings.epochs):
            left = [task for task in stream if not self._was_answered(task, epoch)]
            for first in range(0, len(left), self.settings.batch):
                await self._keep_pace()
                if self.stopped:
                    break
                await self.answer_batch(left[first : first + self.settings.batch], epoch)
        await self.flush()

    async def start(self, canary: Sequence[Task] = ()) -> None:
        """Look whether the model can be learnt with, load the version that answers, and take up what a death left.
        `canary`: the questions that versions are examined with. Raises LearnError, StoreError and ModelError."""
        self._canary = list(canary)
        self._held_out |= {task.question.id for task in canary}
        await require_tokens(self._model)
        await self._serving.follow()
        for group in await asyncio.to_thread(self._spool.answered):
            await self._record(group)
            await self._consolidate(group, self._on_event)
        if self._training is not None:
            await self._finish_interrupted(self._training)

    def stop(self, why: str) -> None:
        """Begin no further question; those under way are finished, and learnt from."""
        self.stopped = self.stopped or why

    # ── questions ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def answer_batch(self, tasks: Sequence[Task], epoch: int = 0) -> list[Group]:
        """Answer some questions with one version and the memory as it is; then remember them, and hand their rollouts
        to the weights. Those that could not be asked are left out of what is returned.

        Raises LearnError for a canary question and for one that was scored in this pass already, StoreError.
        """
        for task in tasks:
            if task.question.id in self._held_out:
                raise LearnError(
                    f"'{task.question.id}' is a question of the canary.", wanted="questions that it does not hold"
                )
            if self._was_answered(task, epoch):
                raise LearnError(f"'{task.question.id}' was scored already in pass {epoch}.")
        await self._serving.follow()
        with self._serving.use() as version:
            answered = await side_by_side(self._answer_and_score(self._once(task, epoch), version) for task in tasks)
        groups = [group for group in answered if group is not None]
        for group in groups:
            await self._consolidate(group, self._on_event)
        await self._learn()
        return groups

    async def submit(self, task: Task, *, episode_id: str = "", on_event: OnEvent | None = None) -> Group | None:
        """Answer one question of a stream that comes one by one. It is remembered at once; the weights learn whenever
        `learn.batch` questions have come together. The first `learn.canary` are held out. A question that comes again
        is one of the next pass. None: its model could not be asked. `episode_id`: of the answer that is reported;
        `on_event`: told of this question, instead of the learner's own.

        Cancelling breaks the answering off; what is answered is taken in all the same. Raises LearnError, StoreError.
        """
        id = task.question.id
        with self._next_pass(id) as epoch:
            asked = self._once(task, epoch, episode_id, on_event)
            if self.holds_out(id):
                self._held_out.add(id)
                if id not in {one.question.id for one in self._canary}:
                    self._canary.append(task)
                return await self._answer_held_out(asked)
            await self._serving.follow()
            with self._serving.use() as version:
                group = await self._answer(asked, version)
            if group is not None:
                await self._to_its_end(self._take_in(group, asked.on_event))
        if group is not None and self.waiting >= self.settings.batch:
            await self._learn()
        return group

    async def flush(self) -> None:
        """Have the weights learn all that waits, and wait for it. Raises LearnError, StoreError."""
        await self._learn(wait=True)
        if self.trouble is not None:
            raise self.trouble

    async def erase(self, edit: Callable[[dict[str, Any]], Fate]) -> Wiped:
        """Take out of the spool what `edit` says of each group (`Spool.erase`). What goes and is on its way into the
        memory, and what is being learnt from, is left as it is, and told. What is answered at this moment comes without
        it: `without_erased` knows of it by now. Raises LearnError."""
        if self._learning.locked():
            async with self._moving:
                return await asyncio.to_thread(self._spool.erase, edit, in_use=("answered", "ready", "learnt"))
        async with self._learning, self._moving:
            wiped = await asyncio.to_thread(self._spool.erase, edit, in_use=("answered",))
            self._due = min(self._due, self.waiting)
        return wiped

    async def close(self) -> None:
        """Let go of model, worker and folder. What waits in the spool is learnt when the stream goes on."""
        ending = [*self._settling, *([self._background] if self._background is not None else ())]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        if self._training is not None:
            await self._training.trainer.close()
        await self._serving.close()
        self._spool.close()

    # ── answering ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _answer_and_score(self, asked: _Asked, version: str) -> Group | None:
        group = await self._answer(asked, version)
        if group is not None:
            await self._put(group)
        return group

    async def _answer(self, asked: _Asked, version: str) -> Group | None:
        """All tries of a question, and one of them chosen."""
        task, epoch = asked.task, asked.epoch
        async with self._questions:
            if self.stopped:
                return None
            ledger = self._ledger(asked)
            team = await self._looked_up(task, ledger)
            sampled = await side_by_side(
                self._try(asked, team, number, version) for number in range(self.settings.samples)
            )
            episodes = tuple(one.outcome for one in sampled)
            if not heard(episodes):
                self._could_not_be_asked(task, episodes[0])
                return None
            self._unheard_in_a_row = 0
            choices = by_rule(episodes, f"{self._seed} {task.question.id} {epoch}")
            reported = choices.get(self.settings.report, 0)
            if not self.settings.supervised:
                reported = choices["accepted"] = accepted(episodes, f"{self._seed} {task.question.id} {epoch}")
            elif self.settings.report == "best":
                reported = choices["best"] = await self._best(task, episodes, version, ledger)
            # Whichever it is: whoever asked knows the answer by this id from the beginning.
            was = episodes[reported].id
            rollouts = (one.sample for one in sampled if isinstance(one.sample, Rollout))
            return Group(
                question_id=task.question.id,
                epoch=epoch,
                reported=reported,
                by_rule=choices,
                episodes=tuple(one.evolve(id=asked.id) if one.id == was else one for one in episodes),
                rollouts=tuple(replace(one, episode_id=asked.id) if one.episode_id == was else one for one in rollouts),
                dropped=tuple(one.sample for one in sampled if isinstance(one.sample, Dropped)),
                version=version,
            )

    async def _looked_up(self, task: Task, ledger: Ledger) -> Team:
        """The team with what its memory says of the question now: all tries see the same."""
        if self._team.memory is None:
            return self._team
        try:
            recall = await self._team.memory.recall(task.question, ledger=ledger)
        except MiaError:
            return self._team  # Each try will meet the failure, and keep it.
        return replace(self._team, memory=FoundOnce(self._team.memory, recall))

    async def _try(self, asked: _Asked, team: Team, number: int, version: str) -> Sampled[Episode]:
        ledger = self._ledger(asked)
        temperature = self.settings.temperature
        if number == 0 and self.settings.first_temperature is not None:
            temperature = self.settings.first_temperature

        async def agent(model: ChatModel, task: Task) -> Episode:
            asking = replace(team, planner=self._planner.asking(model))
            return await answer(task, asking, ledger, id=f"{asked.id}.{number}", run=self._run)

        async with self._tries:
            return await roll_out(
                agent,
                self._model,
                asked.task,
                self._reward,
                role=Role.PLANNER,
                group=f"{self._run}/{asked.task.question.id}/{asked.epoch}",
                temperature=temperature,
                seed=int.from_bytes(hashlib.sha256(f"{self._seed}\n{asked.place}\n{number}".encode()).digest()[:6]),
                adapter=version,
            )

    async def _best(self, task: Task, episodes: Sequence[Episode], version: str, ledger: Ledger) -> int:
        pairs = None
        if self._team.memory is not None:
            with contextlib.suppress(MiaError):  # The choice is made without them then.
                pairs = await self._team.memory.recall(task.question, kind=MemoryKind.PLAN_PAIR, ledger=ledger)
        return await best(self._planner.asking(_Greedy(self._examinee, version)), episodes, pairs, ledger)

    async def _answer_held_out(self, asked: _Asked) -> Group | None:
        """Answered once, as the line answers; nothing is learnt from it."""
        with self._serving.use() as version:
            async with self._questions:
                if self.stopped:
                    return None
                episode = await self._answer_plainly(asked, version)
        if not heard([episode]):
            self._could_not_be_asked(asked.task, episode)
            return None
        self._unheard_in_a_row = 0
        group = Group(asked.task.question.id, asked.epoch, 0, (episode,), version=version, canary=True)
        await self._to_its_end(self._take_in(group, asked.on_event))
        return group

    async def _answer_plainly(self, asked: _Asked, version: str) -> Episode:
        """Greedily, with one version; nothing outside the episode changes."""
        planner = self._planner.asking(_Greedy(self._examinee, version))
        line = self._team.line.model_copy(update={"judge": "final"})
        team = replace(self._team, planner=planner, line=line)
        return await answer(asked.task, team, self._ledger(asked), id=asked.id, run=self._run)

    def _could_not_be_asked(self, task: Task, episode: Episode) -> None:
        assert episode.stop is not None
        self.unanswered[task.question.id] = episode.stop.sentence
        if self._keep is not None and len(self.unanswered) > self._keep:
            del self.unanswered[next(iter(self.unanswered))]
        self._unheard_in_a_row += 1
        if self._unheard_in_a_row >= UNHEARD:
            self.stop(f"{UNHEARD} questions in a row could not be asked: {episode.stop.sentence}")

    # ── what is kept of it ────────────────────────────────────────────────────────────────────────────────────────

    async def _take_in(self, group: Group, on_event: OnEvent) -> None:
        """All that becomes of an answered question before the weights."""
        await self._put(group)
        await self._consolidate(group, on_event)

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for it; it goes on where whoever waits goes away. What `close` breaks off is taken up at the start."""
        task = asyncio.create_task(work)
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)
        await asyncio.shield(task)

    async def _put(self, group: Group) -> None:
        """Keep an answered question, and fix its score."""
        # Before it is on the disk: the same question, asked meanwhile, is one of the next pass.
        self._mark(group.question_id, group.epoch)
        async with self._moving:
            kept = await asyncio.to_thread(self._without_erased, group)
            if kept is not None:
                await asyncio.to_thread(self._spool.put, kept)
        await self._fix_score(group)
        if self._on_scored is not None:
            await self._on_scored(group)

    async def _record(self, group: Group) -> None:
        """Fix the score of a question that was found in the spool, unless it is."""
        if not self._is_marked(group.question_id, group.epoch):
            await self._fix_score(group)
        if self._on_scored is not None:
            await self._on_scored(group)

    async def _fix_score(self, group: Group) -> None:
        score = Score.of(group)
        async with self._writing:
            await asyncio.to_thread(append_line, self._folder / "scores.jsonl", asdict(score))
        self._note(score)

    def _note(self, score: Score) -> None:
        self.scores.append(score)
        if self._keep is not None:
            del self.scores[: -self._keep]
        self._mark(score.question_id, score.epoch)
        self.unanswered.pop(score.question_id, None)
        if score.canary:
            self._held_out.add(score.question_id)

    def _is_marked(self, question_id: str, epoch: int) -> bool:
        return bool(self._passes.get(question_id, 0) >> epoch & 1)

    def _mark(self, question_id: str, epoch: int) -> None:
        self._passes[question_id] = self._passes.get(question_id, 0) | 1 << epoch

    async def _consolidate(self, group: Group, on_event: OnEvent) -> None:
        """Bring a scored question into the memory, and what is left of it before the weights."""
        rollouts = self.settings.into in ("both", "memory")
        async with self._consolidating:
            kept = await asyncio.to_thread(self._without_erased, group)
            if kept is not None:
                taken = list(kept.episodes) if rollouts else [kept.episode]
                if not kept.canary and self._team.memory is not None:
                    await self._remember(kept, taken, on_event)
                if self._team.archive is not None:
                    for episode in taken:
                        await asyncio.to_thread(self._team.archive.save_episode, episode)
            async with self._moving:
                kept = await asyncio.to_thread(self._without_erased, group)
                wanted = self._training is not None and kept is not None and kept.rollouts and not kept.canary
                await asyncio.to_thread(self._spool.make_ready if wanted else self._spool.finish, group)

    async def _remember(self, group: Group, taken: Sequence[Episode], on_event: OnEvent) -> None:
        memory = self._team.memory
        assert memory is not None
        shown = {one.memory_id for episode in taken if episode.recall is not None for one in episode.recall.shown}
        await memory.credit(group.episode.id, frozenset(shown), majority(taken))
        ledger = Ledger(group.question_id, run=self._account, on_event=on_event)
        await memory.remember(taken, ledger)

    # ── the weights ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _learn(self, *, wait: bool = False) -> None:
        """Have the weights learn what waits: now, or in the background where the trainer allows it."""
        training = self._training
        if training is None:
            return
        self._due = self.waiting
        if not training.trainer.background:
            await self._update_all(training)
            return
        await self._update_beside(training)
        while wait and self._background is not None and not self._background.done():
            await asyncio.shield(self._background)
            if self.waiting and self.trouble is None:
                await self._update_beside(training)  # Something came while the last update ended.

    async def _update_beside(self, training: Training) -> None:
        """Let the background work, unless it does. Raises what it met that is no failure of the world."""
        if self._busy:
            return
        if self._background is not None:
            await self._background
        self._busy = True
        self._background = asyncio.create_task(self._update_in_background(training))

    async def _keep_pace(self) -> None:
        """Wait until what is answered next will not be too old to be learnt from when its turn comes: nobody sits and
        waits for the answers of a whole stream."""
        most = self.settings.max_staleness * self.settings.batch
        async with self._learnt:
            await self._learnt.wait_for(lambda: not self._busy or self.waiting <= most)

    async def _update_in_background(self, training: Training) -> None:
        """Whatever the weights meet, answering goes on; it is told at the end."""
        try:
            self.trouble = None
            await self._update_all(training)
        except MiaError as error:
            self.trouble = error
        finally:
            self._busy = False
            async with self._learnt:
                self._learnt.notify_all()

    async def _update_all(self, training: Training) -> None:
        async with self._learning:
            if self._broken_off:
                await self._finish_interrupted(training)
            while files := self._spool.ready()[: self._due]:
                self._broken_off = True
                await self._update(training, files)
                self._broken_off = False

    async def _update(self, training: Training, files: Sequence[Path]) -> None:
        await self._serving.follow()
        parent = self._serving.current
        # What is there was kept to be learnt again.
        replay = await asyncio.to_thread(self._spool.learnt)
        learnt = await training.trainer.update(files, parent, replay)
        canary = await self._decide(training, learnt.version) if learnt.version else None
        await asyncio.to_thread(self._spool.retire, files, self.settings.replay)
        self._due -= len(files)
        await asyncio.to_thread(training.store.prune, self.settings.keep)
        update = Update(parent, len(files), learnt, canary)
        self.updates.append(update)
        if self._keep is not None:
            del self.updates[: -self._keep]
        page = asdict(learnt) | {
            "at": time.time(),
            "parent": parent,
            "questions": len(files),
            "kept": update.kept,
            "canary": canary.reason if canary else "",
        }
        await asyncio.to_thread(append_line, self._folder / "updates.jsonl", page)
        self._on_update(update)
        async with self._learnt:
            self._learnt.notify_all()

    async def _decide(self, training: Training, name: str) -> CanaryResult | None:
        """Examine a candidate, and let it answer or not. None: it was decided on before."""
        version = await asyncio.to_thread(training.store.get, name)
        if version.state is not State.CANDIDATE:
            return version.canary
        if self._canary_size and not self._canary:
            await asyncio.to_thread(training.store.reject, name, reason="there was no canary to examine it with")
            return None
        for tries_left in reversed(range(EXAMINATIONS)):
            await self._serving.load(version)
            compared = self._serving.current
            try:
                result = await examine(
                    self._canary,
                    self._examined,
                    compared,
                    name,
                    margin=self.settings.canary_margin,
                    concurrency=max(1, self._at_once // 2),
                )
                decide = training.store.promote if result.kept else training.store.reject
                await asyncio.to_thread(decide, name, result)
                return result
            except LearnError:
                await self._serving.follow()
                # Where somebody rolled back meanwhile, it is examined beside what answers now.
                if not tries_left or self._serving.current == compared:
                    raise
            finally:
                # Also where another process decided otherwise meanwhile.
                await self._serving.follow()
        raise AssertionError("a decision or an error ends the loop")

    async def _examined(self, task: Task, version: str) -> Episode:
        return await self._answer_plainly(self._once(task, episode_id=new_id("ep")), version)

    async def _finish_interrupted(self, training: Training) -> None:
        """What a death left between a version and its promotion, or between a version and its spool."""
        for path in await asyncio.to_thread(self._spool.ready):
            rollouts = await asyncio.to_thread(read_rollouts, [path])
            name = await asyncio.to_thread(made_of, training.store, rollouts)
            if name:
                await self._decide(training, name)
                await asyncio.to_thread(self._spool.retire, [path], self.settings.replay)
                self._due -= 1

    # ── small things ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _canary_size(self) -> int:
        """The same in all arms: they are to see the same questions."""
        return self.settings.canary

    def _was_answered(self, task: Task, epoch: int) -> bool:
        return self._is_marked(task.question.id, epoch)

    @contextlib.contextmanager
    def _next_pass(self, question_id: str) -> Iterator[int]:
        """The pass that a question is of which comes now. One that could not be asked leaves its pass open."""
        epoch = max(self._begun.get(question_id, 0), self._passes.get(question_id, 0).bit_length())
        self._begun[question_id] = epoch + 1
        try:
            yield epoch
        finally:
            if self._begun.get(question_id) == epoch + 1:
                del self._begun[question_id]

    def _once(self, task: Task, epoch: int = 0, episode_id: str = "", on_event: OnEvent | None = None) -> _Asked:
        """Without an id: the same for the same question of the same stream, however often it is gone on with."""
        place = f"{self._run}\n{task.question.id}\n{epoch}"
        id = episode_id or "ep-" + hashlib.sha256(place.encode()).hexdigest()[:20]
        return _Asked(task, epoch, id, on_event or self._on_event)

    def _ledger(self, asked: _Asked) -> Ledger:
        return Ledger(asked.task.question.id, budget=self._budget, run=self._account, on_event=asked.on_event)


class Serving:
    """Which version answers. Others stay loaded while anybody still answers with them.

    Requests name their version; what the model answers to requests that name none is left alone, since other roles may
    be asked through the same model.
    """

    def __init__(self, training: Training | None) -> None:
        self.current = ""
        """Empty: the weights to begin with."""
        self._training = training
        self._loaded: dict[str, tuple[Version, contextlib.ExitStack]] = {}
        """By name, with what keeps the files from being pruned."""
        self._users: Counter[str] = Counter()
        self._changing = asyncio.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[str]:
        """The version that answers now; it stays loaded until the end."""
        name = self.current
        with self._training.publisher.using(name) if self._training is not None else contextlib.nullcontext():
            self._users[name] += 1
            try:
                yield name
            finally:
                self._users[name] -= 1

    async def load(self, version: Version) -> None:
        """Have a version ready beside the one that answers. Raises LearnError."""
        async with self._changing:
            await self._load(version)

    async def follow(self) -> None:
        """Answer with the version that the store says from now on (another process may have rolled back), and let go of
        those that nobody uses. Raises LearnError."""
        if self._training is None:
            return
        async with self._changing:
            version = await asyncio.to_thread(self._training.store.current)
            if version is not None:
                await self._load(version)
            self.current = version.name if version is not None else ""
            for name in [one for one in self._loaded if one != self.current and not self._users[one]]:
                await self._unload(name)

    async def close(self) -> None:
        """Let go of all versions. Raises LearnError."""
        async with self._changing:
            for name in list(self._loaded):
                await self._unload(name)

    async def _load(self, version: Version) -> None:
        if version.name in self._loaded:
            return
        assert self._training is not None
        store = self._training.store
        with contextlib.ExitStack() as held:
            held.enter_context(store.hold(version.name))
            await self._training.publisher.publish(version, store.weights(version.name))
            self._loaded[version.name] = version, held.pop_all()

    async def _unload(self, name: str) -> None:
        assert self._training is not None
        version, held = self._loaded.pop(name)
        with held:
            await self._training.publisher.retire(version)


class _Greedy:
    """A model that answers at temperature 0, with one version."""

    price: Price | None = None

    def __init__(self, model: MemoModel[TokenReply], version: str) -> None:
        self.name = model.name
        self.context_window = model.context_window
        self.max_tokens = model.max_tokens
        self._model = model
        self._version = version

    async def complete(self, request: ChatRequest) -> TokenReply:
        """Raises ModelError."""
        return await self._model.complete(replace(request, temperature=0.0, adapter=self._version))

    async def close(self) -> None:
        """The model is its owner's to close."""


def check(team: Team, settings: LearnSettings, training: Training | None) -> None:
    """Whether this team can learn so. Raises ConfigError."""
    if team.planner is None or not team.line.plan:
        raise ConfigError("the Planner is to learn, and the line has none.", hint="line.plan = true")
    if team.planner.wants_plan_pairs:
        raise ConfigError(
            "a question is tried with several plans, and each try would choose among several again.",
            wanted="one plan to a try; learn.samples says how many tries",
            hint="line.best_of = 1",
        )
    if team.line.replan != "reflect":
        raise ConfigError(
            f"line.replan is '{team.line.replan}', and the reward is for a Planner that looks back at its work.",
            hint='line.replan = "reflect"',
        )
    if team.judge is None:
        raise ConfigError("there is no judge, and nothing to learn from without one.", hint='judge.kind = "auto"')
    if training is not None and settings.weights != "lora":
        raise ConfigError(
            "test-time learning examines a version beside the one that answers, and whole weights take each other's "
            "place.",
            hint='learn.weights = "lora"',
        )
    if settings.into in ("both", "weights") and training is None:
        raise ConfigError(
            f"learn.into is '{settings.into}', and there is nothing to train weights with.",
            hint='learn.into = "memory", or hand a Training in',
        )
    if settings.into in ("memory", "nothing") and training is not None:
        raise ConfigError(f"learn.into is '{settings.into}', and weights would be trained.", hint="hand no Training in")
    if settings.into in ("both", "memory") and team.memory is None:
        raise ConfigError(
            f"learn.into is '{settings.into}', and there is no memory.",
            hint='learn.into = "weights", or memory.enabled = true',
        )


def reported_id(episode_id: str) -> str:
    """Of a try, the id of the answer that was reported of its question; of all else, its own. What was shown to either
    is credited under it."""
    found = _TRY.fullmatch(episode_id)
    return found[1] if found else episode_id


def _correct(episode: Episode) -> bool | None:
    verdict: Verdict | None = episode.verdict
    return None if verdict is None or verdict.outcome is Outcome.UNJUDGED else verdict.correct


def _load_score(page: Mapping[str, Any]) -> Score:
    try:
        return Score(**{**page, **{name: tuple(page[name]) for name in ("tries", "rewards", "dropped")}})
    except (KeyError, TypeError) as error:
        raise LearnError(f"this is no score of a question ({error}).", wanted="a line of scores.jsonl") from error


def _open_page(path: Path, settings: LearnSettings, seed: int) -> str:
    """The id of the stream in this folder; begun where there is none. Raises ConfigError where it was begun with other
    settings, LearnError where it cannot be read."""
    now: dict[str, Any] = settings.model_dump(mode="json")
    if not path.exists():
        run = new_id("stream")
        _write(path, {"format": FORMAT, "seed": seed, "settings": now, "run": run})
        return run
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        # A setting that there was not yet had the effect of its default.
        defaults = LearnSettings().model_dump(mode="json")
        run, before = str(kept["run"]), {**defaults, **kept["settings"], "seed": kept["seed"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LearnError(f"cannot read '{path}' ({error}).", hint="name another folder") from error
    now = {**now, "seed": seed}
    different = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    if different := [name for name in different if name not in _MAY_DIFFER]:
        raise ConfigError(
            f"the stream in '{path.parent}' was begun with other settings of `learn`. These differ: "
            f"{', '.join(different)}.",
            hint="set them as they were, or name another folder",
        )
    return run


def _write(path: Path, page: Mapping[str, Any]) -> None:
    try:
        write_whole(path, (json.dumps(page, indent=2) + "\n").encode())
    except OSError as error:
        raise LearnError(f"cannot write '{path}': {error.strerror}.", hint="make room on the disk") from error
