"""The model card says what the folder holds."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import torch
from tiny_training import TINY

from mia.errors import LearnError
from mia.learn.warmup.card import write_card
from mia.learn.warmup.measure import ABILITIES, Share


def test_what_the_card_says_is_true(finished: Path) -> None:
    shares = {name: Share(9, 10) for name in ABILITIES} | {next(iter(ABILITIES)): Share(0, 0)}
    page = write_card(finished, "mia world train --out it", shares, "5 validation worlds").read_text(encoding="utf-8")
    weights = finished / "model" / "model.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in page
    assert f"{weights.stat().st_size:,} bytes" in page
    kept = torch.load(finished / "checkpoint.pt", weights_only=True)["model"]
    tied = sum(weight.numel() for name, weight in kept.items() if name != "lm_head.weight")
    assert f"| parameters | {tied:,} |" in page
    assert "```\nmia world train --out it\n```" in page
    assert f"| steps | {TINY.steps} |" in page
    assert "| worlds | 0 to 1," in page
    assert "Apache-2.0" in page
    assert page.count("| 90.0% | 59.6% to 98.2% | 10 |") == len(ABILITIES) - 1
    assert page.count("| – | – | 0 |") == 1
    for name, meaning in ABILITIES.items():
        assert f"| {name} | {meaning} |" in page


def test_without_figures_it_says_so(finished: Path) -> None:
    page = write_card(finished, "mia world train", {}, "").read_text(encoding="utf-8")
    assert re.search(r"## Figures\n+Not measured\.", page)


def test_there_is_no_card_of_an_unfinished_training(tmp_path: Path) -> None:
    with pytest.raises(LearnError, match="no finished training"):
        write_card(tmp_path, "mia world train", {}, "")
    assert not list(tmp_path.iterdir())
