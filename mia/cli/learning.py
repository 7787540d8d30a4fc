"""`mia run --learn`: the same run, which learns from the stream while it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mia.cli import output
from mia.errors import ConfigError

if TYPE_CHECKING:
    from mia.config import Config
    from mia.evals.run import Progress, Run
    from mia.learn.online import OnlineLearner, Training, Update
    from mia.learn.spool import Group
    from mia.models.base import ChatModel
    from mia.team import Team
    from mia.types import Task

FOLDER = "learning"
"""In the run's folder: the stream's scores, its spool, and what became of each update."""


def check(config: Config, tasks: list[Task]) -> None:
    """Raises ConfigError for settings that cannot learn so."""
    learn = config.learn
    if not learn.supervised and config.judge.kind != "peer":
        raise ConfigError(
            f"learning is to do without references, and judge.kind is '{config.judge.kind}'.",
            wanted="peer review",
            hint="--judge peer",
        )
    if config.memory.frozen and learn.into in ("both", "memory"):
        raise ConfigError(
            f"the memory is frozen, and learn.into is '{learn.into}'.", hint="--into weights, or leave --frozen out"
        )
    if learn.canary >= len(tasks):
        raise ConfigError(
            f"there are {len(tasks)} questions, and the first {learn.canary} would be held out, to examine versions "
            "with.",
            wanted="more questions than that",
            hint=f"set learn.canary = {len(tasks) // 4}, or 0 to keep every version "
            f"(export MIA_LEARN__CANARY={len(tasks) // 4})",
        )


class Learning:
    """One run that learns."""

    def __init__(
        self,
        opened: Run,
        tasks: list[Task],
        team: Team,
        model: ChatModel,
        training: Training | None,
        config: Config,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """Raises ConfigError, LearnError."""
        from mia.evals.run import Progress
        from mia.learn.online import OnlineLearner
        from mia.models.ledger import Account
        from mia.redaction import Redactor
        from mia.team import budget
        from mia.types import Role

        self.progress = Progress(total=len(tasks), summary=opened.summary)
        self._opened = opened
        self._tasks = tasks
        self._team = team
        self._on_progress = on_progress
        self._account = Account(budget(config.budget.run), "run")
        self._account.spent = opened.summary.usage
        self._learner: OnlineLearner = OnlineLearner(
            team,
            model,  # type: ignore[arg-type]  # Whether it tells its tokens is asked of it.
            config.learn,
            opened.folder / FOLDER,
            training=training,
            at_once=config.run.concurrency * config.learn.samples,
            greedy=config.models.of(Role.EXECUTOR).temperature == 0,
            question_budget=budget(config.budget.question),
            account=self._account,
            redactor=Redactor(config.memory.redact),
            on_scored=self._scored,
            on_update=_tell,
        )

    def stop(self, why: str) -> None:
        """Begin no further question; those under way are finished."""
        self.progress.stopped = self.progress.stopped or why
        self._learner.stop(why)

    async def run(self) -> Progress:
        """Raises LearnError, StoreError and ModelError."""
        from mia.evals.run import Runner

        try:
            await self._learner.run(self._tasks)
        finally:
            await self._learner.close()
            # What was spent beside the reported answers: on other tries, on choosing, examining and remembering.
            summary = self._opened.summary
            summary.remembering += self._account.spent - summary.usage
            self.progress.stopped = self.progress.stopped or self._learner.stopped
            self.progress.unanswered = dict(self._learner.unanswered)
            # Nothing is left to ask: it closes the log, and writes the summary.
            await Runner(self._opened, [], self._team, learn=False).run()
        return self.progress

    def page(self) -> dict[str, Any]:
        """What is to be told of the learning, as plain JSON data."""
        learner = self._learner
        epochs = sorted({score.epoch for score in learner.scores})
        learnt = [score for score in learner.scores if not score.canary]
        return {
            "version": learner.version,
            "questions": len(learnt),
            "held_out": len(learner.scores) - len(learnt),
            "tries": sum(len(score.tries) for score in learnt),
            "dropped": sum(len(score.dropped) for score in learnt),
            "updates": len(learner.updates),
            "versions_kept": sum(update.kept for update in learner.updates),
            "waiting": learner.waiting,
            "correct_by_epoch": [
                [
                    sum(bool(score.correct) for score in learnt if score.epoch == epoch),
                    sum(score.correct is not None for score in learnt if score.epoch == epoch),
                ]
                for epoch in epochs
            ],
        }

    async def _scored(self, group: Group) -> None:
        """Into the log of the run, once: a question's first answer is what it is measured by."""
        id = group.question_id
        if group.epoch == 0 and id not in self._opened.done:
            await self._opened.log.append(group.episode)
            self._opened.summary.add(group.episode)
            self._opened.done.add(id)
            self.progress.answered.add(id)
        self._on_progress(self.progress)


def rows(page: dict[str, Any]) -> list[tuple[str, str]]:
    """The page as rows of a table."""
    told = [
        ("learnt from", f"{page['questions']} questions, {page['tries']} tries ({page['dropped']} gave no sample)"),
        ("held out", f"{page['held_out']} questions, to examine versions with"),
        ("versions", f"{page['versions_kept']} kept, of {page['updates']} updates"),
        ("answers now", page["version"] or "the model as it came"),
    ]
    if len(page["correct_by_epoch"]) > 1:
        shares = [f"{correct} of {judged}" for correct, judged in page["correct_by_epoch"]]
        told.append(("correct, pass by pass", ", ".join(shares)))
    if page["waiting"]:
        told.append(("waits to be learnt", f"{page['waiting']} questions"))
    return told


def _tell(update: Update) -> None:
    if not update.learnt.version:
        output.note(f"Nothing to learn from {update.questions} questions: {_reasons(update)}.")
        return
    why = update.canary.reason if update.canary is not None else "nobody examined it"
    output.note(f"{update.learnt.version} {'answers from now on' if update.kept else 'was not kept'}: {why}.")


def _reasons(update: Update) -> str:
    return ", ".join(f"{count} × {why}" for why, count in update.learnt.dropped.items()) or "no try could be judged"
