"""What the in-process model serves: conversations a second, one by one and many at once, and plain `generate` beside.

    python benchmarks/local_serving.py [--json] [--rounds 5] [--path FOLDER] [--threads 1] [--device cpu]

Three measurements in one run, medians over rounds that alternate, one torch thread:

1. Conversations of several turns, as the line has them: a prompt of 60 to 160 tokens grows by a reply of 3 to 60 and
   an observation of 20 to 90 tokens at each of its 5 turns, up to about 500. One at a time, 8 and 32 at once, with as
   many more waiting as keep the batch full for most of the time. Wanted: 32 at once at least 4 times the rate of one by
   one.
2. Single prompts of 60 to 500 tokens with replies of 3 to 60, nothing shared between them, in the same three ways.
3. The same 32 single prompts through transformers' `generate` as one left-padded batch, and through ours. Wanted: at
   least 1.3 times its rate. `generate` has to go on until the longest reply is there, so a second row gives every
   reply the same 32 tokens, where that is no matter.

Replies have the length that the workload says: the tokens that end a turn are switched off on both sides. Without
`--path` the embedded checkpoint is measured; where there is none, a random model of its size.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import transformers

from mia.models.local import EMBEDDED
from mia.models.sampling import Job, Sampled, Sampler
from mia.models.weights import Weights, silenced

Prompt = tuple[tuple[int, ...], int]
"""Token ids, and how many tokens the reply has."""
WAYS = (1, 8, 32)
TURNS = 5
MANY, FEWEST = 3, 24
"""Conversations to a round: so many times those at once, and not fewer than these."""


def random_model(folder: Path) -> str:
    """A model of the embedded one's size, with random weights and a tokenizer of single characters."""
    from tokenizers import Tokenizer, models

    vocabulary = {chr(0x100 + number): number for number in range(700)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0x100)))
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=384,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    with silenced(transformers):
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return str(folder)


# ── the workload ──────────────────────────────────────────────────────────────────────────────────────────────────


def single_prompts(count: int, vocabulary: int, seed: int) -> list[Prompt]:
    rng = random.Random(seed)
    return [
        (tuple(rng.randrange(vocabulary) for _ in range(rng.randint(60, 500))), rng.randint(3, 60))
        for _ in range(count)
    ]


class Serving:
    """Asks the sampler from tasks of an event loop, as `LocalModel` does."""

    def __init__(self, weights: Weights, threads: int) -> None:
        self.weights = weights
        self.sampler = Sampler(weights, batch=max(WAYS), threads=threads)

    async def ask(self, prompt: Prompt) -> Sampled:
        future: Future[Sampled] = Future()

        def done(result: Sampled | BaseException) -> None:
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.sampler.submit(Job(prompt_ids=prompt[0], max_tokens=prompt[1], done=done))
        sampled = await asyncio.wrap_future(future)
        assert len(sampled.ids) == prompt[1]
        return sampled

    async def converse(self, seed: int) -> None:
        rng = random.Random(seed)
        vocabulary = self.weights.network.config.vocab_size

        def some(low: int, high: int) -> tuple[int, ...]:
            return tuple(rng.randrange(vocabulary) for _ in range(rng.randint(low, high)))

        ids = some(60, 160)
        for _ in range(TURNS):
            ids += (await self.ask((ids, rng.randint(3, 60)))).ids + some(20, 90)


async def at_once(limit: int, work: Sequence[Callable[[], Awaitable[Any]]]) -> float:
    """Seconds for all of the work, so much of it at a time."""
    slots = asyncio.Semaphore(limit)

    async def one(piece: Callable[[], Awaitable[Any]]) -> None:
        async with slots:
            await piece()

    begun = time.perf_counter()
    await asyncio.gather(*map(one, work))
    return time.perf_counter() - begun


def generate(weights: Weights, prompts: Sequence[Prompt]) -> float:
    """Seconds for one batch through transformers' own loop."""
    begun = time.perf_counter()
    longest = max(len(ids) for ids, _ in prompts)
    padded = [[0] * (longest - len(ids)) + list(ids) for ids, _ in prompts]
    mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids, _ in prompts]
    with torch.inference_mode():
        weights.network.generate(
            input_ids=torch.tensor(padded, device=weights.device),
            attention_mask=torch.tensor(mask, device=weights.device),
            do_sample=False,
            max_new_tokens=max(tokens for _, tokens in prompts),
            pad_token_id=0,
        )
    return time.perf_counter() - begun


async def measure(path: str, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(arguments.threads)
    weights = Weights.load(path, device=arguments.device)
    weights.end_ids = frozenset()
    weights.network.generation_config.eos_token_id = None
    vocabulary = weights.network.config.vocab_size
    serving = Serving(weights, arguments.threads)
    kinds = ("conversations", "single")
    seconds: dict[str, list[float]] = {f"{kind} {way}": [] for kind in kinds for way in WAYS}
    batches = ("mixed", "equal")
    seconds |= {f"{side} {kind}": [] for side in ("generate", "ours") for kind in batches}
    for number in range(arguments.rounds + 1):
        prompts = single_prompts(max(WAYS), vocabulary, seed=1000 + number)
        equal = [(ids, 32) for ids, _ in single_prompts(max(WAYS), vocabulary, seed=2000 + number)]
        found: dict[str, float] = {}
        for way in WAYS:
            # The same workload each time, from other tokens, so that nothing of an earlier way is found again.
            first = (number * 10 + way) * 1000
            count = max(MANY * way, FEWEST)
            talks = [lambda seed=first + piece: serving.converse(seed) for piece in range(count)]
            found[f"conversations {way}"] = await at_once(way, talks) / count
            singles = single_prompts(count, vocabulary, seed=first)
            asked = [lambda prompt=prompt: serving.ask(prompt) for prompt in singles]
            found[f"single {way}"] = await at_once(way, asked) / count
        for kind, batch in zip(batches, (prompts, equal), strict=True):
            found[f"generate {kind}"] = generate(weights, batch) / len(batch)
            asked = [lambda prompt=prompt: serving.ask(prompt) for prompt in batch]
            found[f"ours {kind}"] = await at_once(max(WAYS), asked) / len(batch)
        if number:  # The first round is the warm-up.
            for name, value in found.items():
                seconds[name].append(value)
    await asyncio.to_thread(serving.sampler.close)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"torch {torch.__version__}, {arguments.threads} thread(s), {arguments.device}",
        "model": f"{weights.name}, {sum(p.numel() for p in weights.network.parameters()) / 1e6:.2f} M parameters",
        "rounds": arguments.rounds,
        "seconds_each": seconds,
        "per_second": {
            **{f"{kind} {way}": 1 / medians[f"{kind} {way}"] for kind in kinds for way in WAYS},
            **{f"{side} {kind}": 1 / medians[f"{side} {kind}"] for side in ("generate", "ours") for kind in batches},
        },
        "ratios": {
            **{
                f"{kind} {way}": statistics.median(
                    one / many for one, many in zip(seconds[f"{kind} 1"], seconds[f"{kind} {way}"], strict=True)
                )
                for kind in kinds
                for way in WAYS[1:]
            },
            **{
                f"ours/generate {kind}": statistics.median(
                    theirs / ours
                    for theirs, ours in zip(seconds[f"generate {kind}"], seconds[f"ours {kind}"], strict=True)
                )
                for kind in batches
            },
        },
    }


def show(result: dict[str, Any]) -> None:
    rate, ratio = result["per_second"], result["ratios"]
    print(f"{result['machine']}\n{result['model']}; medians of {result['rounds']} rounds\n")
    print("| a second | one by one | 8 at once | 32 at once | 32 / one by one |\n|---|---|---|---|---|")
    for kind in ("conversations", "single"):
        cells = " | ".join(f"{rate[f'{kind} {way}']:.1f}" for way in WAYS)
        print(f"| {kind} | {cells} | {ratio[f'{kind} 32']:.2f} |")
    print("\n| replies a second, batch of 32 | generate | ours | ours / generate |\n|---|---|---|---|")
    for kind in ("mixed", "equal"):
        cells = f"{rate[f'generate {kind}']:.1f} | {rate[f'ours {kind}']:.1f}"
        print(f"| {kind} lengths of reply | {cells} | {ratio[f'ours/generate {kind}']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--path", default="", help="a folder of transformers")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        embedded = str(EMBEDDED) if (EMBEDDED / "config.json").is_file() else ""
        path = arguments.path or embedded or random_model(Path(folder) / "random")
        result = asyncio.run(measure(path, arguments))
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
