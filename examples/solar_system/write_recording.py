"""What the models say in the demonstration, written by hand, and the script that makes the recording of it.

No model was asked. The texts follow what the search really returns over `docs/`, and tell the stories that the line is
there for: a first search that misleads, a reflection that notices, a supplementary plan that leads on, a memory that
makes the second question of a pair easier, one that misleads, and a mistake that nobody notices until the judge does.

    python examples/solar_system/write_recording.py

writes `recording.jsonl` beside this file. The tests hold it to the documents: every quote stands in what a search of
the same question brought back, and every call of the recording is asked for exactly once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mia.evals.tasks import read_tasks
from mia.models.replay import RecordedCall, write_calls
from mia.types import Role

FOLDER = Path(__file__).parent
NOTE = "Written by hand for the demonstration; no model was asked."


class Turn(NamedTuple):
    """One reply: whose, what for, and its text."""

    role: Role
    purpose: str
    text: str


def plan(thinking: str, *steps: str) -> Turn:
    return Turn(Role.PLANNER, "plan", _after(thinking, _numbered(steps)))


def reflect(thinking: str, word: str) -> Turn:
    return Turn(Role.PLANNER, "reflect", _after(thinking, word))


def replan(thinking: str, *steps: str) -> Turn:
    return Turn(Role.PLANNER, "replan", _after(thinking, _numbered(steps)))


def search(thinking: str, *queries: str) -> Turn:
    call = json.dumps({"name": "search", "arguments": {"query_list": queries}}, ensure_ascii=False)
    return Turn(Role.EXECUTOR, "execute", _after(thinking, f"<tool_call>{call}</tool_call>"))


def answer(thinking: str, words: str, *evidence: tuple[str, str]) -> Turn:
    """`evidence`: (page, quote)."""
    lines = "\n".join(f"[docs/{page}.md#0] {quote}" for page, quote in evidence)
    block = f"<evidence>\n{lines}\n</evidence>\n" if evidence else ""
    return Turn(Role.EXECUTOR, "execute", _after(thinking, f"{block}<answer>{words}</answer>"))


def workflow(*steps: str) -> Turn:
    return Turn(Role.MANAGER, "compress", _numbered(steps))


def _after(thinking: str, rest: str) -> str:
    return f"<think>{thinking}</think>\n{rest}"


def _numbered(steps: tuple[str, ...]) -> str:
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


KUIPER_MIRANDA = ("miranda", "Gerard Kuiper discovered it in February 1948")
CASSINI_IAPETUS = ("iapetus", "It was discovered in 1671 by Giovanni Domenico Cassini")

RECORDING: dict[str, list[Turn]] = {
    # The memory is empty. One search for everything finds the astronomer and hides the moon.
    "solar-01": [
        plan(
            "There is no earlier work to go by. The question says a good deal at once, so a search in its own words "
            "may bring the page that answers it.",
            "Search in the words of the question, for the astronomer and the moon together.",
            "Complete when a page names the moon of Uranus that this astronomer discovered.",
        ),
        search(
            "Step 1: the question in its own words.",
            "astronomer who found methane in the atmosphere of Titan and discovered a moon of Uranus",
        ),
        answer(
            "The page on Titan says that Gerard Kuiper found the methane. The page on Uranus names five moons and does "
            "not say that he discovered any of them. What I found does not settle the question.",
            "unknown",
        ),
        reflect(
            "The astronomer is found, but his moon was never looked for by his name. The question is left unanswered.",
            "yes",
        ),
        replan(
            "One query carried both halves of the question, and the words of the first half outweighed the second. Now "
            "that a name is known, the second half can be asked for by itself.",
            "Search for the discovery of a moon of Uranus together with the name that the page on Titan gives.",
            "Complete when a page states that this astronomer discovered the moon.",
        ),
        search(
            "The page on Titan names Gerard Kuiper. I search for his discovery by his name.",
            "Gerard Kuiper discovered a moon of Uranus",
        ),
        answer(
            "The page on Miranda, a moon of Uranus, says that Gerard Kuiper discovered it in 1948. He found the "
            "methane in 1944, so 'later' holds.",
            "Miranda",
            ("titan", "Gerard Kuiper found the signature of methane in the moon's spectrum"),
            KUIPER_MIRANDA,
        ),
        workflow(
            "find the astronomer and the moon in one search (astronomer who found methane in the atmosphere of Titan "
            "and discovered a moon of Uranus → Gerard Kuiper for the methane; five moons of Uranus, not by whom)",
            "answer from these pages (Titan, Uranus → unknown)",
            "search for the second half alone, with the name (Gerard Kuiper discovered a moon of Uranus → the page on "
            "Miranda: discovered by Gerard Kuiper in 1948)",
            "answer (the page on Miranda → Miranda)",
        ),
    ],
    # The memory of 01 saves the detour: first the name, then the name with what is sought.
    "solar-02": [
        plan(
            "An earlier workflow, judged correct, had the same kind of question. Its search for both halves at once "
            "led to nothing; a search for the second half with the astronomer's name did. I take over that route.",
            "Search for the discoverer of Miranda.",
            "Search for the discovery of a moon of Neptune together with the name from step 1, as an earlier workflow "
            "did for another planet.",
            "Complete when a page states that the person of step 1 discovered a moon of Neptune.",
        ),
        search("Step 1: who discovered Miranda.", "who discovered Miranda"),
        search(
            "It was Gerard Kuiper, in 1948. Step 2: his moon of Neptune, by his name.",
            "Gerard Kuiper discovered a moon of Neptune",
        ),
        answer(
            "The page on Neptune says that Nereid was found by Gerard Kuiper in 1949. Triton was found within weeks of "
            "the planet, a century earlier, so it is not his.",
            "Nereid",
            KUIPER_MIRANDA,
            ("neptune", "Nereid, was found by Gerard Kuiper in 1949"),
        ),
        reflect("Both steps have a page behind them, and the astronomer is the same in both.", "no"),
        workflow(
            "find the astronomer (who discovered Miranda → Gerard Kuiper)",
            "search for the discovery with that name (Gerard Kuiper discovered a moon of Neptune → Nereid, found by "
            "Gerard Kuiper in 1949)",
            "answer (the page on Neptune → Nereid)",
        ),
    ],
    # The mission bears two names, and the Executor takes the wrong one.
    "solar-03": [
        plan(
            "What is shown of earlier work goes from a page to a person and on by the person's name. That route fits: "
            "mission, astronomer, place of birth.",
            "Search for the mission that landed on Titan, to learn after whom it is named.",
            "Search for the place of birth of the astronomer of step 1, by name.",
            "Complete when a page states where that astronomer was born.",
        ),
        search("Step 1: the mission that landed on Titan.", "mission that landed on Titan"),
        search(
            "The mission is Cassini-Huygens. Step 2: where the astronomer Cassini was born.",
            "Cassini astronomer birthplace",
        ),
        answer(
            "Giovanni Domenico Cassini was born in Perinaldo.",
            "Perinaldo",
            ("giovanni-cassini", "Giovanni Domenico Cassini was born in 1625 in Perinaldo, a village in Liguria."),
        ),
        reflect(
            "The question asks for the namesake of the probe. According to the page on the mission, Cassini is the "
            "orbiter, and the landing probe bears the other name. It also asks for a city, and a village was found.",
            "yes",
        ),
        replan(
            "The name of the whole mission was taken for that of the probe. The page found in step 1 tells the two "
            "apart, so only the second step has to be done again.",
            "Take the name of the probe, not of the orbiter, from the page on the mission.",
            "Search for where the astronomer of that name was born.",
        ),
        search("The probe is named Huygens. Where was he born?", "astronomer Huygens born"),
        answer(
            "The probe that landed on Titan is Huygens, and Christiaan Huygens was born in The Hague.",
            "The Hague",
            ("titan", "a probe named Huygens came down through the haze on a parachute and landed"),
            ("christiaan-huygens", "He was born in The Hague in 1629"),
        ),
        workflow(
            "find the name (mission that landed on Titan → Cassini-Huygens: Cassini the orbiter, Huygens the probe)",
            "find the birthplace of the first of the two names (Cassini astronomer birthplace → Perinaldo, a village)",
            "answer (the page on Giovanni Domenico Cassini → Perinaldo)",
            "take the name of the probe itself and search by it (astronomer Huygens born → The Hague)",
            "answer (the page on Christiaan Huygens → The Hague)",
        ),
    ],
    "solar-04": [
        plan(
            "An earlier workflow, judged correct, took this route. It went astray where it took the first name at hand "
            "instead of the name of the very thing that was asked about; its second try, by the right name, led on.",
            "Search for the dark region of Iapetus, and read what that region itself is called.",
            "Search for where the astronomer of that name was born, as an earlier workflow did.",
            "Complete when a page states the village.",
        ),
        search("Step 1: the name of the dark region.", "name of the dark region of Iapetus"),
        search(
            "It is called Cassini Regio, after Giovanni Domenico Cassini, who discovered the moon. Step 2: where he "
            "was born.",
            "where was Giovanni Domenico Cassini born",
        ),
        answer(
            "The page says that he was born in Perinaldo, a village in Liguria.",
            "Perinaldo",
            ("iapetus", "The dark area bears his name today: it is called Cassini Regio."),
            ("giovanni-cassini", "Giovanni Domenico Cassini was born in 1625 in Perinaldo, a village in Liguria."),
        ),
        reflect("The region's name and the birthplace each have a page behind them, and it is a village.", "no"),
        workflow(
            "find the name of the region itself (name of the dark region of Iapetus → Cassini Regio, after Giovanni "
            "Domenico Cassini)",
            "search by that name (where was Giovanni Domenico Cassini born → Perinaldo, a village in Liguria)",
            "answer (the page on Giovanni Domenico Cassini → Perinaldo)",
        ),
    ],
    "solar-05": [
        plan(
            "The workflows shown are about persons and their moons. Only their habit carries over: first the name, "
            "then a search with the name.",
            "Search for the planet that was discovered from a garden in Bath.",
            "Search for a spacecraft that flew past the planet of step 1, and for the year.",
            "Complete when a page states the year in which a spacecraft reached that planet.",
        ),
        search("Step 1: the garden in Bath.", "planet discovered from a garden in Bath"),
        search(
            "The planet is Uranus. Step 2: who flew past it, and when; two queries at once.",
            "spacecraft that flew past Uranus",
            "Uranus flyby year",
        ),
        answer(
            "A single spacecraft, Voyager 2, has flown past Uranus; it reached it in January 1986.",
            "1986",
            ("william-herschel", "in the garden of his house in Bath, he came upon a small disc among the stars"),
            ("uranus", "A single spacecraft, Voyager 2, has flown past Uranus."),
            ("voyager-2", "Uranus in January 1986"),
        ),
        reflect("The planet and the year each have a page behind them, and there was only one flyby.", "no"),
        workflow(
            "find the planet (planet discovered from a garden in Bath → Uranus, discovered by William Herschel)",
            "find the spacecraft and the year (spacecraft that flew past Uranus; Uranus flyby year → Voyager 2, "
            "January 1986)",
            "answer (the page on Voyager 2 → 1986)",
        ),
    ],
    # Memory can mislead: the workflow of 05 ends at Uranus, and the brewer found moons there too.
    "solar-06": [
        plan(
            "An earlier workflow, judged correct, took the route planet, spacecraft, year. I take it over, with the "
            "brewer in place of the garden.",
            "Search for the brewer who discovered a moon, and for the planet of that moon.",
            "Search for the year in which a spacecraft flew past the planet of step 1, as an earlier workflow did.",
            "Complete when a page states the year.",
        ),
        search("Step 1: the brewer.", "brewer astronomer who discovered a moon"),
        search(
            "William Lassell was a brewer. He added two moons to the planet that William Herschel had discovered. "
            "Which planet is it?",
            "planet discovered by William Herschel",
        ),
        search("Herschel discovered Uranus. Step 2: the year.", "Uranus reached by spacecraft"),
        answer(
            "Herschel discovered Uranus, and Voyager 2 reached Uranus in January 1986.",
            "1986",
            ("william-lassell", "In 1851 he added two moons to the planet that William Herschel had discovered."),
            ("voyager-2", "Uranus in January 1986"),
        ),
        reflect(
            "The question asks for the planet whose largest moon the brewer discovered. Nothing that was found says "
            "that his two moons of Uranus include its largest. The page on him begins with another moon, and what that "
            "one circles was not looked up. The planet was assumed.",
            "yes",
        ),
        replan(
            "The route ran into the planet of the earlier workflow. The first moon on the brewer's page was passed "
            "over, and it is the one to check.",
            "Search for the moon that the page on the brewer names first: which planet it circles, and whether it is "
            "the largest there.",
            "Read the year for that planet from the page on the spacecraft that is already found.",
        ),
        search("The page names Triton first. Which planet does it circle?", "Triton moon of which planet"),
        answer(
            "Triton is by far the largest moon of Neptune, and William Lassell discovered it. The page on Voyager 2, "
            "found before, says that it reached Neptune in August 1989.",
            "1989",
            ("william-lassell", "William Lassell, born in Bolton in 1799, was a brewer in Liverpool."),
            ("triton", "Triton is by far the largest moon of Neptune"),
            ("voyager-2", "Neptune in August 1989"),
        ),
        workflow(
            "find the brewer (brewer astronomer who discovered a moon → William Lassell; Triton in 1846, two moons of "
            "the planet that William Herschel had discovered in 1851)",
            "take the planet of the two moons (planet discovered by William Herschel → Uranus)",
            "find the year (Uranus reached by spacecraft → Voyager 2, January 1986)",
            "answer (the page on Voyager 2 → 1986)",
            "check whose largest moon was meant (Triton moon of which planet → largest moon of Neptune, discovered by "
            "William Lassell)",
            "read the year for that planet (the page on Voyager 2 → Neptune in August 1989)",
            "answer (Triton, Voyager 2 → 1989)",
        ),
    ],
    "solar-07": [
        plan(
            "Earlier workflows that were judged correct read the name of the very thing that was asked about, and then "
            "searched by that name. The same will do here.",
            "Search for the dust counter aboard New Horizons, and read after whom it is named.",
            "Search for the person of step 1 by name, for her age when she proposed a name.",
            "Complete when a page states the age.",
        ),
        search("Step 1: the dust counter.", "dust counter aboard New Horizons"),
        search("It is called after Venetia Burney. Step 2: how old she was.", "Venetia Burney girl age"),
        answer(
            "The page on Pluto calls her a girl of eleven who proposed its name.",
            "eleven",
            ("new-horizons", "it counts grains of dust along the way and is called the Venetia Burney Student Dust"),
            ("pluto", "Venetia Burney, a girl of eleven who lived in Oxford, proposed to call it after the Roman god"),
        ),
        reflect("The name and the age each have a page behind them. The world is the one she named.", "no"),
        workflow(
            "find the name (dust counter aboard New Horizons → Venetia Burney Student Dust Counter)",
            "search by that name (Venetia Burney girl age → a girl of eleven who proposed the name of Pluto)",
            "answer (the page on Pluto → eleven)",
        ),
    ],
    "solar-08": [
        plan(
            "Earlier workflows that were judged correct looked for an astronomer's birthplace: the name first, and a "
            "search by that name at the end. Here one step more lies between.",
            "Search for the ashes aboard New Horizons, and read whose they are.",
            "If step 1 gives no name, search for the name of that person.",
            "Search for where the person was born, by name, as earlier workflows did.",
            "Complete when a page states the town.",
        ),
        search("Step 1: the ashes.", "ashes aboard New Horizons"),
        search("They are those of the discoverer of Pluto, without a name. Step 2.", "discoverer of Pluto"),
        search("Clyde Tombaugh discovered Pluto. Step 3: where he was born.", "where was Clyde Tombaugh born"),
        answer(
            "Clyde Tombaugh was born in Streator, Illinois.",
            "Streator",
            ("new-horizons", "a small container with some ashes of the discoverer of Pluto"),
            ("pluto", "It was discovered in February 1930 by Clyde Tombaugh"),
            ("clyde-tombaugh", "Clyde Tombaugh was born in 1906 in Streator, Illinois"),
        ),
        reflect("Each of the three steps has a page behind it, and they join without a gap.", "no"),
        workflow(
            "find whose ashes they are (ashes aboard New Horizons → the discoverer of Pluto)",
            "find the name (discoverer of Pluto → Clyde Tombaugh)",
            "search by that name (where was Clyde Tombaugh born → Streator, Illinois)",
            "answer (the page on Clyde Tombaugh → Streator)",
        ),
    ],
    # The right page, and the wrong thing on it: the reflection does not notice, the judge does.
    "solar-09": [
        plan(
            "Earlier workflows that were judged correct first found the discoverer, and then searched by his name. I "
            "take that over, for a spacecraft of the name.",
            "Search for the discoverer of Io.",
            "Search for the spacecraft that bears the name of step 1, and for the moon that it found.",
            "Complete when a page states the find.",
        ),
        search("Step 1: the discoverer of Io.", "who discovered Io"),
        search(
            "Galileo Galilei discovered it. Step 2: the spacecraft Galileo and the moon of an asteroid.",
            "Galileo spacecraft asteroid moon",
        ),
        answer(
            "The page on the spacecraft says that its pictures showed a tiny companion, later named Dactyl, the first "
            "moon of an asteroid ever found.",
            "Dactyl",
            ("io", "Galileo Galilei discovered it in January 1610."),
            ("galileo-spacecraft", "the pictures showed a tiny companion, later named Dactyl"),
        ),
        reflect("The discoverer and the find each have a page behind them.", "no"),
        workflow(
            "find the discoverer (who discovered Io → Galileo Galilei)",
            "find what the spacecraft of that name found (Galileo spacecraft asteroid moon → a companion of the "
            "asteroid Ida, later named Dactyl)",
            "answer with the moon that was found (the page on the spacecraft → Dactyl)",
        ),
    ],
    # The negative memory of 09 says where that route went wrong.
    "solar-10": [
        plan(
            "The most similar workflow was judged incorrect. Its searches brought the right pages; its last step named "
            "the thing that was found, while the question asked around which body. The route is good, the end is to "
            "be watched.",
            "Search for the discoverer of Iapetus.",
            "Search for the spacecraft that bears the name of step 1, and for plumes of water vapour.",
            "Complete when a page says on which moon they were found. Answer with that moon: an earlier workflow "
            "answered with the thing found instead of the place.",
        ),
        search("Step 1: the discoverer of Iapetus.", "who discovered Iapetus"),
        search(
            "Giovanni Domenico Cassini discovered it. Step 2: the spacecraft Cassini and the plumes.",
            "Cassini spacecraft plumes of water vapour",
        ),
        answer(
            "The Cassini spacecraft found the plumes at the south pole of Enceladus. The question asks on which moon.",
            "Enceladus",
            CASSINI_IAPETUS,
            ("enceladus", "In 2005 the Cassini spacecraft found that plumes of water vapour and ice grains shoot out"),
        ),
        reflect("Both steps have a page behind them, and the answer is the moon that was asked for.", "no"),
        workflow(
            "find the discoverer (who discovered Iapetus → Giovanni Domenico Cassini)",
            "find what the spacecraft of that name found (Cassini spacecraft plumes of water vapour → plumes at the "
            "south pole of Enceladus)",
            "answer with the place that was asked for (the page on Enceladus → Enceladus)",
        ),
    ],
}


def recorded_calls() -> Iterator[RecordedCall]:
    """Every turn as a call of the recording, numbered within its question, role and purpose."""
    texts = {task.question.id: task.question.text for task in read_tasks(FOLDER / "questions.jsonl")}
    for id, turns in RECORDING.items():
        counts: Counter[tuple[Role, str]] = Counter()
        for role, purpose, text in turns:
            number = counts[role, purpose]
            counts[role, purpose] += 1
            yield RecordedCall(
                question_id=id,
                question="" if counts.total() > 1 else texts[id],
                role=role,
                purpose=purpose,
                turn=number,
                text=text,
            )


if __name__ == "__main__":
    write_calls(recorded_calls(), FOLDER / "recording.jsonl", note=NOTE)
