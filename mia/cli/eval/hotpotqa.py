"""`mia eval ruler-hotpotqa`: questions of a user's file among ever more documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mia.cli import options, output
from mia.cli.eval import options as own


def ruler_hotpotqa(
    context: typer.Context,
    questions: own.QuestionsFile,
    documents: Annotated[
        str, typer.Option(help="How many in all, with commas between.")
    ] = "50,100,200,400,800,1600,3200,6400",
    samples: Annotated[int, typer.Option(min=1, help="Questions at each number of documents.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the order of documents, and of the choice of others.")] = 4,
    method: own.MethodKind = "reader",
    pool: own.Pool = None,
    tokenizer: own.Tokenizer = None,
    out: own.Out = None,
    concurrency: own.Concurrency = None,
    temperature: own.Temperature = 0.7,
    top_p: own.TopP = 0.95,
    model: options.Model = None,
    base_url: options.BaseUrl = None,
    replay: options.Replay = None,
    record: options.Record = None,
    ray: own.RayAddress = None,
    write: own.Write = None,
    json: output.JsonFlag = False,
) -> None:
    """Measure multi-hop questions among N documents: their own paragraphs and random others (MemAgent, 2507.02259).

    An answer counts where it follows "the answer is" (or stands in the box that the reader asks for); case, articles
    and punctuation do not. Each answer is kept at once in --out, and the same command goes on. See docs/ruler.md.
    """
    from mia.cli.eval.measuring import Measurement, measure, method_settings, write_items
    from mia.evals.ruler import suite
    from mia.evals.ruler.documents import read_corpus
    from mia.evals.ruler.haystacks import noise
    from mia.evals.ruler.items import Sources

    config = options.shared(context).config(own.model_flags(model, base_url, replay, record, concurrency))
    corpus = read_corpus(questions, pool)
    samples = min(samples, len(corpus.questions))
    works = suite.works(["hotpotqa"], own.numbers(documents, "--documents"), samples)
    if write is not None:
        count = own.counter(tokenizer)
        write_items(works, Sources(count=count, essays=noise(), seed=seed, corpus=corpus), write)
        return
    measure(
        Measurement(
            works=works,
            sources=lambda count: Sources(count=count, essays=noise(), seed=seed, corpus=corpus),
            method=method_settings(config, method, temperature, top_p),
            tokenizer=tokenizer,
            folder=out or Path("runs/ruler-hotpotqa"),
            unit="documents",
            ray=ray,
        ),
        config,
        json=json,
    )
