"""Which runs a sweep over power limits makes, and in which order. Pure.

A limit is measured at few points: prompts, which are bound by compute and feel it first, and decode
at three batch sizes. Each limit's block of runs stands between two blocks of the same points
without a limit (the reference), and a speed ratio is taken against the mean of both, so that a
drift of the machine cancels to first order.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.core.errors import ConfigError
from serve_app.profiler.limit_effects import brackets
from serve_app.profiler.samples import Kind
from serve_app.profiler.sweep import design

if TYPE_CHECKING:
    from collections.abc import Sequence

    from serve_app.profiler.samples import Sample
    from serve_app.profiler.sweep import Point, SweepSettings

OPTION, PERMISSION = "--power-limits-watts", "--allow-setting-power-limits"
MIN_LIMITS = 3  # the response has four parameters; no limit at all is the fourth point
BATCH_FACTOR = 4  # between the batch sizes measured, from the largest down
BATCHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Runs under one limit, in order. `limit_watts` None = the limits that were found."""

    limit_watts: float | None
    repeat: int
    points: tuple[Point, ...]


def parse_limits(text: str | None, *, allowed: bool) -> tuple[float, ...]:
    """The limits that the user asks for, watts, rising; empty where none is. ConfigError: not
    numbers, too few, or not allowed to be set."""
    if text is None:
        if allowed:
            raise ConfigError(f"{PERMISSION} alone sets nothing: name the limits with {OPTION}")
        return ()
    try:
        limits = sorted({float(part) for part in text.split(",")})
    except ValueError:
        limits = []
    if len(limits) < MIN_LIMITS or not all(0.0 < watts < math.inf for watts in limits):
        raise ConfigError(
            f"{OPTION} {text!r}; allowed: {MIN_LIMITS} or more different limits in watts, such as "
            "300,400,500"
        )
    if not allowed:
        raise ConfigError(
            f"{OPTION} changes the power limit of the GPUs while it measures, for everything that "
            f"runs on them: allow it with {PERMISSION}"
        )
    return tuple(limits)


def check_limits(limits: Sequence[float], reference_watts: float) -> tuple[float, ...]:
    """The limits below the one that was found, which the reference runs measure. ConfigError for
    one above it, or where fewer than three are left."""
    above = [watts for watts in limits if watts > reference_watts]
    below = tuple(watts for watts in limits if watts < reference_watts)
    if above or len(below) < MIN_LIMITS:
        asked = ",".join(f"{watts:g}" for watts in limits)
        raise ConfigError(
            f"{OPTION} {asked}; allowed: none above the limit that is set now, {reference_watts:g} "
            f"W, and {MIN_LIMITS} or more below it"
        )
    return below


def limit_points(settings: SweepSettings) -> tuple[Point, ...]:
    """The points that limits are measured at: the longest prompt, and decode at the largest batch
    and at about a quarter and a sixteenth of it, each with the longest context that the sweep has.

    All are points of the sweep without a limit, so that the model knows them.
    """
    points = design(settings)
    prefill = max((p for p in points if p.kind is Kind.PREFILL), key=lambda p: p.prompt_tokens)
    deepest: dict[int, Point] = {}
    for point in points:
        if point.kind is Kind.DECODE:
            known = deepest.get(point.num_seqs, point)
            deepest[point.num_seqs] = max(known, point, key=lambda p: p.context_tokens)
    largest = max(deepest)
    wanted = [largest / BATCH_FACTOR**k for k in range(BATCHES)]
    sizes = dict.fromkeys(
        min(deepest, key=lambda n: abs(math.log(n / target))) for target in wanted
    )
    return (prefill, *(deepest[n] for n in sizes))


def blocks(
    points: Sequence[Point],
    limits: Sequence[float],
    *,
    repeats: int,
    seed: int,
    measured: Sequence[Sample] = (),
) -> list[Block]:
    """The blocks that are left to run: per repeat every limit once in an order drawn anew, a
    reference before and after each; empty where all is in `measured`."""
    rng = random.Random(seed)  # noqa: S311  (an order, not a secret)
    done = {
        (measured[k].point, measured[k].power_limit_watts, measured[k].repeat)
        for k in brackets(measured)
    }
    found: list[Block] = []
    for repeat in range(1, repeats + 1):
        for watts in rng.sample(list(limits), len(limits)):
            order = tuple(rng.sample(list(points), len(points)))
            if not {(point.name, watts, repeat) for point in points} <= done:
                found += [
                    Block(limit_watts=None, repeat=repeat, points=order),
                    Block(limit_watts=watts, repeat=repeat, points=order),
                ]
    if found:
        found.append(Block(limit_watts=None, repeat=repeats, points=found[-1].points))
    return found
