"""Settings in hindsight: the cheapest that attains the target, searched cheaply, verified in full.

Coordinate descent: from the best of some starts, one setting after the other is tried at all of its
values and the best one kept. Candidates that attain come before those that do not, the cheaper one
first; of those that do not, the one that attains more. All that was tried on the excerpts is then
verified on the whole trace, cheapest first, until one attains there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from serve_app.simulator.specs import PolicySpec

SLACK = 0.003  # an excerpt may attain so much less, or more, than the whole
VERIFIED = 4  # in full, of those that attain on the excerpts, and of those that do so safely
SAFEST = 3  # and of those that attain most
FURTHER = 1  # after the first that attains in full: the excerpts may have misjudged the order


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to. `joules_per_request` inf and `attained` 0: it could not be run."""

    joules_per_request: float
    attained: float

    def rank(self, target: float) -> tuple[float, float]:
        """Smaller is better."""
        return (max(target - self.attained, 0.0), self.joules_per_request)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """The choice; `attains`: on the whole trace; `tried`: candidates, `verified`: whole runs."""

    spec: PolicySpec
    outcome: Outcome
    attains: bool
    tried: int
    verified: int


Evaluate = Callable[[PolicySpec], Outcome]
Axis = Callable[[PolicySpec], Iterable[PolicySpec]]


def tune(  # noqa: PLR0913  (a search is what it is made of)
    starts: Sequence[PolicySpec],
    axes: Sequence[Axis],
    screen: Evaluate,
    verify: Evaluate,
    target: float,
    *,
    also: Sequence[PolicySpec] = (),
    screened: float | None = None,
) -> Tuned:
    """The cheapest of all that are tried that attains `target` on the whole trace; where none does,
    the one that attains most. `also` are verified in any case; `screened` is what attains on the
    excerpts, if not the target itself."""
    screened = target if screened is None else screened
    tried: dict[str, tuple[PolicySpec, Outcome]] = {}

    def look(spec: PolicySpec) -> tuple[PolicySpec, Outcome]:
        if spec.text not in tried:
            tried[spec.text] = (spec, screen(spec))
        return tried[spec.text]

    def best(found: Iterable[tuple[PolicySpec, Outcome]]) -> tuple[PolicySpec, Outcome]:
        return min(found, key=lambda one: one[1].rank(screened))

    here = best([look(spec) for spec in starts])
    for axis in axes:
        here = best([here, *(look(spec) for spec in axis(here[0]))])
    return verified(list(tried.values()), verify, target, also, screened)


def verified(
    tried: Sequence[tuple[PolicySpec, Outcome]],
    verify: Evaluate,
    target: float,
    also: Sequence[PolicySpec] = (),
    screened: float | None = None,
) -> Tuned:
    """The cheapest of `also` and of the first of the `candidates` that attain in full; else the one
    that attains most."""
    seen = [(spec, verify(spec)) for spec in also]
    further = 0
    for spec in candidates(tried, target if screened is None else screened):
        if further > FURTHER:
            break
        outcome = verify(spec)
        seen.append((spec, outcome))
        further += further > 0 or outcome.attained >= target
    spec, outcome = min(seen, key=lambda one: one[1].rank(target))
    return Tuned(
        spec=spec,
        outcome=outcome,
        attains=outcome.attained >= target,
        tried=len(tried),
        verified=len(seen),
    )


def candidates(tried: Sequence[tuple[PolicySpec, Outcome]], target: float) -> list[PolicySpec]:
    """In which order to verify: those that nearly attain on the excerpts by their cost, then those
    that attain with something to spare by theirs, then those that attain most."""
    order: dict[str, PolicySpec] = {}
    for least in (target - SLACK, target + SLACK):
        near = [one for one in tried if one[1].attained >= least]
        near.sort(key=lambda one: one[1].joules_per_request)
        order |= {spec.text: spec for spec, _ in near[:VERIFIED]}
    safest = sorted(tried, key=lambda one: (-one[1].attained, one[1].joules_per_request))
    order |= {spec.text: spec for spec, _ in safest[:SAFEST]}
    return list(order.values())


def axis(key: str, values: Iterable[float | str | None]) -> Axis:
    """The same spec with each of these values."""
    held = list(values)
    return lambda spec: [spec.changed(**{key: value}) for value in held]


def scaled(key: str, ratios: Iterable[float], otherwise: float) -> Axis:
    """The same spec with a number multiplied; three digits."""
    held = list(ratios)

    def made(spec: PolicySpec) -> list[PolicySpec]:
        value = spec.options.get(key, otherwise)
        assert isinstance(value, int | float), f"{key} is a number"
        return [spec.changed(**{key: float(f"{value * ratio:.3g}")}) for ratio in held]

    return made


def moved(key: str, steps: Iterable[int], otherwise: int, least: int = 1) -> Axis:
    """The same spec with a setting of the fleet raised or lowered by whole numbers."""
    held = list(steps)

    def made(spec: PolicySpec) -> list[PolicySpec]:
        value = spec.fleet.get(key, otherwise)
        assert isinstance(value, int), f"{key} is a whole number"
        return [spec.changed(**{key: max(value + step, least)}) for step in held]

    return made
