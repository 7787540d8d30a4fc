"""Hypothesis strategies for what can be said in the world's small language."""

from __future__ import annotations

from hypothesis import strategies as st

from mia.world.language import (
    NOTHING,
    RELATION,
    SOURCES,
    SYLLABLES,
    Chain,
    Outcome,
    Query,
    RouteStep,
    Try,
)

names = st.lists(st.sampled_from(SYLLABLES), min_size=2, max_size=3).map(lambda parts: "".join(parts).capitalize())
relations = st.sampled_from(sorted(RELATION))
sources = st.sampled_from(SOURCES)
chains = st.builds(Chain, names, st.lists(relations, min_size=1, max_size=4).map(tuple))
steps = st.builds(RouteStep, relations, sources, st.just("") | relations)
routes = st.lists(steps, max_size=8).map(tuple)
queries = st.builds(Query, steps, names)
outcomes = (
    st.builds(Outcome, st.just("found"), names) | st.builds(Outcome, st.just("kept"), relations) | st.just(NOTHING)
)
tries = st.lists(st.builds(Try, queries, outcomes), max_size=8)
