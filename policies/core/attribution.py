"""How the energy of a shared engine step is divided among its requests, and what one was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

Joules = dict[str, float]  # device kind ("gpu", "cpu", "dram") → joules


@dataclass(frozen=True, kw_only=True, slots=True)
class StepShare:
    """One request's part of one engine step. `context_tokens`: KV tokens it attends over, after
    the step."""

    request_id: str
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepWeights:
    """How to divide one step: (prefill, decode) weight of each share, in any unit, all >= 0.

    `relative_watts` (> 0): the draw that is expected of this step, in any unit that is the same for
    all steps; it weighs the steps of one meter window against each other.
    """

    shares: list[tuple[float, float]]
    relative_watts: float = 1.0


class Weigher(Protocol):
    """A rule of attribution. Pure; `weigh` never raises."""

    @property
    def method(self) -> str:
        """The rule's name, told with every response."""
        ...

    def weigh(self, shares: tuple[StepShare, ...]) -> StepWeights:
        """Return the weights of one step, in the order of its shares."""
        ...


class TokenWeigher:
    """Every token that a step computes weighs the same. Used where no model fits."""

    method = "token_weighted"

    def weigh(self, shares: tuple[StepShare, ...]) -> StepWeights:
        """Return the tokens themselves."""
        return StepWeights(
            shares=[(float(s.prefill_tokens), float(s.decode_tokens)) for s in shares]
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestEnergy:
    """What one request was given. `joules` and its parts are None when no meter covered any of its
    work; prefill + decode = joules.

    `idle_joules`: the part of `joules` that the replica would have drawn anyway while it worked on
    the request. `coverage_ratio`: share of its work that a meter saw. `attribution_ratio`: its part
    of the energy of the steps that it took part in, 1 when it was alone; None where unknown.
    """

    joules: float | None
    idle_joules: float | None
    prefill_joules: float | None
    decode_joules: float | None
    joules_by_kind: Mapping[str, float]
    coverage_ratio: float
    attribution_ratio: float | None = None

    @staticmethod
    def total(parts: list[RequestEnergy]) -> RequestEnergy:
        """The sum over the engine requests behind one response; unknown parts stay out of it.

        They may have shared steps, so that their common `attribution_ratio` is known for one part
        only.
        """
        if len(parts) == 1:
            return parts[0]
        known = [part for part in parts if part.joules is not None]
        kinds: Joules = {}
        for part in known:
            add_joules(kinds, part.joules_by_kind)
        coverage = sum(p.coverage_ratio for p in parts) / len(parts) if parts else 0.0
        return RequestEnergy(
            joules=math.fsum(p.joules or 0.0 for p in known) if known else None,
            idle_joules=math.fsum(p.idle_joules or 0.0 for p in known) if known else None,
            prefill_joules=math.fsum(p.prefill_joules or 0.0 for p in known) if known else None,
            decode_joules=math.fsum(p.decode_joules or 0.0 for p in known) if known else None,
            joules_by_kind=kinds,
            coverage_ratio=coverage,
        )


def add_joules(into: Joules, more: Mapping[str, float], factor: float = 1.0) -> None:
    """Add `factor` times `more` to `into`, kind by kind."""
    for kind, value in more.items():
        into[kind] = into.get(kind, 0.0) + factor * value
