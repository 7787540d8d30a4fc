"""Variable tracking: a value is given to a variable, that variable to the next, and so on; which variables hold it?

After RULER (arXiv 2404.06654, section 3): one chain of four hops, scattered in its order over a text of noise, so five
variables hold the value. Each statement stands in the text once.
"""

from __future__ import annotations

from itertools import islice, pairwise

from mia.evals.ruler.haystacks import depth, fit, hide, noise
from mia.evals.ruler.items import Item, Make, Sources, Work
from mia.evals.ruler.vocabulary import letters

HOPS = 4
_NAME_LETTERS = 5


def make(work: Work, sources: Sources) -> Item:
    """Raises ConfigError where the length cannot hold the chain."""
    chance = sources.chance(work)
    names = list(islice(letters(chance, _NAME_LETTERS, upper=True), HOPS + 1))
    value = chance.randrange(10_000, 100_000)
    statements = [f"VAR {names[0]} = {value}."]
    statements += [f"VAR {later} = VAR {earlier}." for earlier, later in pairwise(names)]
    depths = sorted(chance.random() for _ in statements)
    straw = noise()
    fitted = fit(
        lambda size: hide(straw.take(size), statements, depths), sources.count, work.length, what=f"'{work.task}'"
    )
    found = [depth(fitted.text, statement) for statement in statements]
    return Item(
        work,
        fitted.text,
        fitted.tokens,
        f"Find all variables that are assigned the value {value}, directly or through other variables. "
        f"There are {len(names)} of them.",
        tuple(names),
        tuple(place for place in found if place is not None),
        "share",
    )


MAKERS: dict[str, Make] = {"vt": make}
