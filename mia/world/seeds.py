"""Which worlds are for what. Disjoint by construction; nothing is chosen by what happens on test worlds."""

from __future__ import annotations

from mia.errors import ConfigError

TRAIN = range(500_000)
VALIDATION = range(500_000, 600_000)
TEST = range(600_000, 900_000)
DEMONSTRATION = range(900_000, 1_000_000)

SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST, "demonstration": DEMONSTRATION}


def split_of(seed: int) -> str:
    """What a world is for. Raises ConfigError for a seed outside all ranges."""
    for name, seeds in SPLITS.items():
        if seed in seeds:
            return name
    raise ConfigError(f"there is no world {seed}.", wanted=f"a seed from 0 to {DEMONSTRATION.stop - 1}")


def check_training(seed: int) -> None:
    """Raises ConfigError unless this world is one to learn in."""
    if seed not in TRAIN:
        raise ConfigError(
            f"the world {seed} is not for training.", wanted=f"seeds from {TRAIN.start} to {TRAIN.stop - 1}"
        )


def check_unseen(first: int, count: int) -> None:
    """Raises ConfigError unless all these worlds are test worlds: on others, training has a lead."""
    for seed in (first, first + count - 1):
        if seed not in TEST:
            raise ConfigError(
                f"the worlds {first} to {first + count - 1} are not all test worlds: {seed} is "
                f"{f'of the split {split_of(seed)!r}' if 0 <= seed < DEMONSTRATION.stop else 'outside every split'}.",
                wanted=f"seeds from {TEST.start} to {TEST.stop - 1}",
                hint=f"--first-seed {TEST.start}",
            )
