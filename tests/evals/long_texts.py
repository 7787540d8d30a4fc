"""Small files and models for tests of long texts."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mia.evals.ruler.haystacks import Haystack
from mia.evals.ruler.items import Sources
from mia.models.base import ChatRequest
from mia.reader.chunks import EstimatedTokens

ESSAY = (
    "A long road leads from the harbour to the hills. Nobody counts the steps! On most days it rains, and the gulls "
    "fly inland before noon. Is that a sign? The old say so; the young have stopped asking. "
)


def sources(count: str = "estimate", **others: object) -> Sources:
    counts = {"estimate": EstimatedTokens().count, "words": lambda text: len(text.split())}
    return Sources(count=counts[count], essays=Haystack("essay", tuple(ESSAY.split())), **others)  # type: ignore[arg-type]


def hotpot_file(folder: Path, questions: int = 12, paragraphs: int = 10) -> Path:
    """Questions of two supporting paragraphs among ten, in HotpotQA's own format."""
    page = []
    for number in range(questions):
        titles = [f"Title {number}-{place}" for place in range(paragraphs)]
        page.append(
            {
                "_id": f"q{number}",
                "question": f"Where was the maker of film {number} born?",
                "answer": f"Town{number}ville",
                "supporting_facts": [[titles[3], 0], [titles[7], 1]],
                "context": [[title, [f"{title} is a thing.", f" It lies near place {title}."]] for title in titles],
            }
        )
    path = folder / "hotpot.json"
    path.write_text(json.dumps(page), encoding="utf-8")
    return path


def squad_file(folder: Path, paragraphs: int = 30) -> Path:
    """Paragraphs of some sixty words, each with a question and one that has no answer."""
    page = [
        {
            "title": f"Subject {number}",
            "paragraphs": [
                {
                    "context": f"Paragraph {number} says that its colour is colour{number}. " + ESSAY * 2,
                    "qas": [
                        {
                            "id": f"s{number}",
                            "question": f"Which colour {number}?",
                            "answers": [{"text": f"colour{number}"}],
                        },
                        {"id": f"n{number}", "question": "Which none?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
        for number in range(paragraphs)
    ]
    path = folder / "squad.json"
    path.write_text(json.dumps({"version": "v2.0", "data": page}), encoding="utf-8")
    return path


def finder(request: ChatRequest) -> str:
    """Finds needles in what it is shown, by their pattern."""
    text = request.messages[-1].content
    asked = text.rpartition("Question:")[2]
    found = [
        value
        for key, value in re.findall(r"special magic \w+ for (\S+) is: (\S+?)\.", text.rpartition("Question:")[0])
        if key in asked
    ]
    return f"<think>…</think>The answer is {', '.join(found) or 'unknown'}."
