"""A process that keeps a bank on the disk, for tests: `python cache_saver.py PATH [COUNT]`.

Loads the scope "default" of the store from its rows and saves its cache COUNT times, or for ever; prints a line before
each.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mia.memory import cache
from mia.memory.bank import Bank
from mia.store import open_store


def kept(bank: Bank) -> cache.Kept:
    return cache.Kept(bank.revision, bank.epoch, bank.known, bank.shelves)


if __name__ == "__main__":
    path, *count = sys.argv[1:]
    with open_store(Path(path)) as store:
        bank = Bank("default", indexes=False)
        with bank.refreshed(store, kept=False):
            for _ in range(int(count[0]) if count else sys.maxsize):
                print("saving", flush=True)
                cache.save(store, "default", kept(bank))
