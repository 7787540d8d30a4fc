"""`mia eval ruler`: needles, chains and words in long texts, by length and by depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mia.cli import options, output
from mia.cli.eval import options as own


def ruler(
    context: typer.Context,
    task: Annotated[
        list[str] | None,
        typer.Option(help="Only this task. Repeatable.", show_default="all; qa where --questions names a file"),
    ] = None,
    lengths: Annotated[str, typer.Option(help="Of the texts in tokens, with commas between.")] = "8k,16k,32k,64k,128k",
    samples: Annotated[int, typer.Option(min=1, help="Items of each task at each length.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed makes the same items.")] = 0,
    method: own.MethodKind = "reader",
    essays: Annotated[
        Path | None, typer.Option(help="A text file to hide needles in.", show_default="the offline world's")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions with documents for qa, as SQuAD's or HotpotQA's files; also .gz.")
    ] = None,
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
    """Measure reading at any length, in the manner of RULER (arXiv 2404.06654).

    Tasks: niah_single_1 to 3, niah_multikey_1 to 3, niah_multivalue, niah_multiquery (needles), vt (variable
    tracking), cwe and fwe (common and frequent words), qa (questions of a file). Each answer is kept at once in --out,
    and the same command goes on; it may then ask for more tasks, lengths or samples. See docs/ruler.md.
    """
    from mia.cli.eval.measuring import Measurement, measure, method_settings, write_items
    from mia.evals.ruler import suite
    from mia.evals.ruler.documents import read_corpus
    from mia.evals.ruler.haystacks import read_essays, world_essays
    from mia.evals.ruler.items import Sources

    config = options.shared(context).config(own.model_flags(model, base_url, replay, record, concurrency))
    tasks = task or [*suite.RULER, *(["qa"] if questions else [])]
    works = suite.works(tasks, own.numbers(lengths, "--lengths"), samples)
    haystack = read_essays(essays) if essays else world_essays()
    corpus = read_corpus(questions, pool) if questions else None
    if write is not None:
        count = own.counter(tokenizer)
        write_items(works, Sources(count=count, essays=haystack, seed=seed, corpus=corpus), write)
        return
    measure(
        Measurement(
            works=works,
            sources=lambda count: Sources(count=count, essays=haystack, seed=seed, corpus=corpus),
            method=method_settings(config, method, temperature, top_p),
            tokenizer=tokenizer,
            folder=out or Path("runs/ruler"),
            unit="tokens",
            ray=ray,
        ),
        config,
        json=json,
    )
