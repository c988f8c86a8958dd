"""Superposition and rate scaling: nothing lost, nothing moved too far, the shape kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from policies.sim.arrivals import Lengths, RateCurve, TraceRow, poisson
from policies.sim.blocks import (
    BLOCK_ROWS,
    Block,
    block_of,
    blocks_of,
    joined,
    pieces,
    rows_of_blocks,
    scaled_time,
    window,
)
from policies.sim.mixing import default_shift_s, scaled_rate, superposed, superposed_blocks
from policies.sim.modulation import Bursts
from policies.sim.synthesis import day_blocks

LENGTHS = Lengths.constant(100, 10)


def numbered(times):
    """A block whose prompt tokens number its rows."""
    times = np.sort(np.asarray(times, dtype=np.float64))
    return Block(times, np.arange(1, len(times) + 1), np.full(len(times), 5))


times_lists = st.lists(st.lists(st.integers(0, 50), max_size=30), max_size=5)


@given(times_lists, st.integers(1, 7))
def test_superposed_rows_and_blocks_are_the_sorted_union(lists, size):
    blocks = [numbered(times) for times in lists]
    cut = [[b.between(k, k + size) for k in range(0, b.rows, size)] for b in blocks]
    expected = sorted(
        (time, prompt)
        for block in blocks
        for time, prompt in zip(block.arrival_s.tolist(), block.prompt_tokens.tolist(), strict=True)
    )
    for rows in (
        list(superposed([rows_of_blocks([block]) for block in blocks])),
        list(rows_of_blocks(superposed_blocks([iter(parts) for parts in cut]))),
    ):
        assert [row.arrival_s for row in rows] == [time for time, _ in expected]
        assert sorted((row.arrival_s, row.prompt_tokens) for row in rows) == expected


def test_superposing_holds_one_block_of_each_trace():
    drawn = []

    def source(name):
        for k in range(50):
            drawn.append(name)
            yield numbered(k * 10 + np.arange(10))

    merged = superposed_blocks([source("a"), source("b")])
    next(merged)
    assert len(drawn) <= 4
    assert sum(block.rows for block in merged) == 1000 - 20


@pytest.mark.slow
def test_rows_and_blocks_turn_into_each_other():
    rows = list(poisson(100.0, 1000.0, LENGTHS, seed=2))
    blocks = list(blocks_of(rows))
    assert [block.rows for block in blocks] == [BLOCK_ROWS, len(rows) - BLOCK_ROWS]
    assert list(rows_of_blocks(blocks)) == rows
    assert list(rows_of_blocks(pieces(joined(blocks)))) == rows
    assert joined([]).rows == 0


def test_a_window_counts_from_its_begin():
    block = numbered([0.0, 1.0, 2.0, 3.0, 4.0])
    cut = window(block, 1.0, 3.0)
    assert cut.arrival_s.tolist() == [0.0, 1.0]
    assert cut.prompt_tokens.tolist() == [2, 3]
    assert joined(scaled_time([block], 0.5)).arrival_s.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    with pytest.raises(ConfigError, match="time scale 0"):
        scaled_time([block], 0.0)


def test_a_factor_of_one_is_the_trace():
    block = numbered(np.random.default_rng(0).random(500) * 900)
    found = joined(scaled_rate(block, 1.0, seed=3))
    assert all(np.array_equal(a, b) for a, b in zip(found, block, strict=True))


@given(
    st.lists(st.floats(0, 1000), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(0, 99),
    st.sampled_from([None, 0.0, 0.3, 20.0, 400.0]),
)
def test_copies_are_whole_in_order_and_turned_no_further_than_asked(times, factor, seed, shift_s):
    block = numbered(times)
    found = joined(scaled_rate(block, factor, seed, shift_s=shift_s))
    counts = np.bincount(found.prompt_tokens, minlength=block.rows + 1)[1:]
    assert np.all(counts == factor)
    assert np.all(np.diff(found.arrival_s) >= 0)
    span_s = block.arrival_s[-1] * (1 + 1 / block.rows) or 1.0
    assert found.arrival_s.min() >= 0
    assert found.arrival_s.max() <= span_s
    most_s = min(default_shift_s(block, span_s) if shift_s is None else shift_s, span_s / 2)
    moved = np.abs(found.arrival_s - block.arrival_s[found.prompt_tokens - 1])
    assert np.all(np.minimum(moved, span_s - moved) <= most_s + 1e-6)


def test_a_large_trace_comes_in_blocks_that_follow_each_other():
    block = numbered(np.random.default_rng(1).random(60_000) * 3600)
    blocks = list(scaled_rate(block, 7.0, seed=2))
    assert len(blocks) >= 6
    assert max(one.rows for one in blocks) < 1.2 * BLOCK_ROWS
    whole = joined(blocks)
    assert np.all(np.diff(whole.arrival_s) >= 0)
    assert np.all(np.bincount(whole.prompt_tokens)[1:] == 7)


@pytest.mark.parametrize("factor", [0.25, 1.5, 3.1])
def test_a_fraction_keeps_its_share_of_one_copy(factor):
    block = numbered(np.random.default_rng(1).random(20_000) * 3600)
    counts = [joined(scaled_rate(block, factor, seed)).rows for seed in range(10)]
    part = factor - int(factor)
    sigma = (20_000 * part * (1 - part) / 10) ** 0.5
    assert np.mean(counts) == pytest.approx(20_000 * factor, abs=4 * sigma)
    assert len(set(counts)) > 1
    thinned = joined(scaled_rate(block, factor, seed=0))
    again = joined(scaled_rate(block, factor, seed=0))
    assert np.array_equal(thinned.arrival_s, again.arrival_s)


def test_slow_waves_stay_and_single_requests_do_not_become_batches():
    steps = RateCurve(starts_s=(0.0, 1200.0, 2400.0), rates_per_s=(4.0, 12.0, 6.0), end_s=3600.0)
    block = joined(day_blocks(steps, LENGTHS, Bursts(), 5))
    edges = [0.0, 1200.0, 2400.0, 3600.0]
    before, _ = np.histogram(block.arrival_s, bins=edges)
    ten = joined(scaled_rate(block, 10.0, seed=1))
    after, _ = np.histogram(ten.arrival_s, bins=edges)
    assert after / before == pytest.approx(10.0, rel=0.04)

    def dispersion(times):
        counts, _ = np.histogram(times[times < 1150], bins=1150, range=(0, 1150))
        return counts.var() / counts.mean()

    # Copies in place make batches of ten; turned ones are as independent as single requests.
    assert dispersion(joined(scaled_rate(block, 10.0, 1, shift_s=0.0)).arrival_s) > 8
    assert dispersion(ten.arrival_s) == pytest.approx(dispersion(block.arrival_s), abs=0.3)


def test_bad_factors_and_empty_traces():
    block = numbered([1.0, 2.0])
    with pytest.raises(ConfigError, match="rate scale 0: expected a number > 0"):
        next(scaled_rate(block, 0.0, 1))
    with pytest.raises(ConfigError, match="shift -1: expected seconds ≥ 0"):
        next(scaled_rate(block, 2.0, 1, shift_s=-1.0))
    assert list(scaled_rate(block_of(()), 2.0, 1)) == []
    one = TraceRow(arrival_s=0.0, prompt_tokens=1, output_tokens=1)
    assert joined(scaled_rate(block_of([one]), 3.0, 1)).rows == 3
