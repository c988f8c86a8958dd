from __future__ import annotations

from itertools import pairwise

import pytest
from planted_limits import FOUND_WATTS, LIMITS, POINTS, RESPONSE, SETTINGS, planted_model
from planted_limits import planted_sample as sample_of

from policies.core.errors import ConfigError
from serve_app.profiler.limits import Block, blocks, check_limits, limit_points, parse_limits
from serve_app.profiler.samples import Kind
from serve_app.profiler.sweep import SweepSettings, design

MODEL = planted_model(RESPONSE)


def runs_of(found):
    """A limit sweep as it was measured."""
    return [
        sample_of(MODEL, point, block.limit_watts or FOUND_WATTS, block.repeat)
        for block in found
        for point in block.points
    ]


def test_limits_are_measured_at_points_that_the_model_knows():
    assert set(POINTS) <= set(design(SETTINGS))
    prefill, *decode = POINTS
    assert (prefill.kind, prefill.prompt_tokens) == (Kind.PREFILL, 2048)
    assert [point.num_seqs for point in decode] == [256, 64, 16]
    assert {point.kind for point in decode} == {Kind.DECODE}


@pytest.mark.parametrize("largest", [2, 3, 8, 17, 64, 512])
def test_an_engine_of_any_size_has_such_points(largest):
    points = limit_points(SweepSettings(max_num_seqs=largest))
    decode = [point.num_seqs for point in points if point.kind is Kind.DECODE]
    assert decode[0] == largest
    assert 2 <= len(decode) == len(set(decode)) <= 3


def test_every_limit_stands_between_two_references():
    found = blocks(POINTS, LIMITS, repeats=2, seed=0)
    assert [block.limit_watts is None for block in found] == [True, False] * 10 + [True]
    for repeat in (1, 2):
        mine = [b.limit_watts for b in found if b.repeat == repeat and b.limit_watts]
        assert sorted(mine) == list(LIMITS)
        assert mine != sorted(mine)
        assert mine != sorted(mine, reverse=True)
    assert {tuple(sorted(block.points, key=POINTS.index)) for block in found} == {POINTS}


def test_the_seed_gives_the_order():
    orders = [blocks(POINTS, LIMITS, repeats=1, seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("kept", [0, 3, 4, 5, 8, 11, 12, 20, 43, 44])
def test_a_sweep_cut_short_goes_on_where_a_limit_was_not_complete(kept):
    whole = blocks(POINTS, LIMITS, repeats=1, seed=3)
    measured = runs_of(whole)[:kept]
    left = blocks(POINTS, LIMITS, repeats=1, seed=3, measured=measured)
    complete = max(0, kept // 4 - 1) // 2  # a limit's block of four runs, and the reference after
    assert left == (whole[2 * complete :] if complete < len(LIMITS) else [])


def test_a_disturbed_run_is_measured_again_with_its_limit():
    whole = blocks(POINTS, LIMITS, repeats=1, seed=0)
    measured = runs_of(whole)
    limited = next(k for k, sample in enumerate(measured) if sample.power_limit_watts == 400.0)
    measured[limited] = sample_of(MODEL, POINTS[0], 400.0, 1, steady=False)
    left = blocks(POINTS, LIMITS, repeats=1, seed=0, measured=measured)
    assert [block.limit_watts for block in left] == [None, 400.0, None]


def test_a_block_is_one_limit_and_its_points():
    assert blocks(POINTS[:1], (300.0,), repeats=1, seed=0) == [
        Block(limit_watts=watts, repeat=1, points=POINTS[:1]) for watts in (None, 300.0, None)
    ]


def test_no_two_blocks_after_each_other_have_the_same_limit():
    found = blocks(POINTS, LIMITS, repeats=3, seed=5)
    assert all(one.limit_watts != other.limit_watts for one, other in pairwise(found))


def test_limits_are_read_from_the_command_line():
    assert parse_limits(None, allowed=False) == ()
    assert parse_limits("500, 300,400,300", allowed=True) == (300.0, 400.0, 500.0)


@pytest.mark.parametrize(
    ("text", "allowed", "reason"),
    [
        ("300,400,500", False, "allow it with --allow-setting-power-limits"),
        (None, True, "name the limits with --power-limits-watts"),
        ("300,400", True, "allowed: 3 or more different limits in watts"),
        ("300,400,half", True, "'300,400,half'; allowed: 3 or more"),
        ("300,400,-500", True, "allowed: 3 or more"),
        ("300,400,nan", True, "allowed: 3 or more"),
        ("300,400,inf", True, "allowed: 3 or more"),
        ("", True, "allowed: 3 or more"),
    ],
)
def test_nothing_is_set_that_was_not_both_asked_for_and_allowed(text, allowed, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_limits(text, allowed=allowed)


def test_the_limit_that_was_found_is_measured_by_the_reference():
    assert check_limits((300.0, 400.0, 500.0, 700.0), 700.0) == (300.0, 400.0, 500.0)


@pytest.mark.parametrize("limits", [(300.0, 400.0, 500.0, 701.0), (300.0, 400.0, 700.0)])
def test_limits_lie_below_the_one_that_was_found(limits):
    with pytest.raises(ConfigError, match="none above the limit that is set now, 700 W, and 3 or"):
        check_limits(limits, 700.0)
