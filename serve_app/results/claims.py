"""What issue 5 asks of the policy, and what was found; for the report and for the README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.results.figures import REFERENCE, Results

OURS = "energy_slo"
PEERS = ("wva", "dynamollm", "throttllem", "pals", "agft")
LIMITS_PER_CELL = {
    ("8b", "chat"): 0.67, ("8b", "chat-x8"): 0.67, ("8b", "chat-day"): 0.67,
    ("8b", "code-day"): 0.75, ("8b", "code-bursty"): 0.85,
    ("70b", "chat"): 0.93, ("70b", "chat-x8"): 0.93, ("70b", "chat-day"): 0.93,
    ("70b", "code-day"): 1.0, ("70b", "code-bursty"): 1.0,
}  # fmt: skip
Cells = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """`found` None: not run, or (`alone`) nobody to be compared with attains. `asked`: the most, or
    with `at_least` the least, that is asked for."""

    text: str
    found: float | None
    asked: float
    at_least: bool = False
    alone: bool = False

    @property
    def verdict(self) -> str:
        """held, missed, or not run."""
        if self.found is None:
            return "held: none of them attains" if self.alone else "not run"
        held = self.found >= self.asked if self.at_least else self.found <= self.asked
        return "held" if held else "missed"


def claims(results: Results, cells: Cells) -> Iterator[Claim]:
    """Each by the worse of the responses to limits."""
    yield Claim(
        text="attainment, the worst cell", at_least=True, asked=0.99,
        found=_worst(results, cells, [_attained(results, cell) for cell in cells], least=True),
    )  # fmt: skip
    for other, asked, text in (
        (REFERENCE, 0.80, "J/request over Ray Serve tuned in hindsight, geometric mean"),
        ("ray_limit", 0.92, "over tuned Ray with the best fixed limit, geometric mean"),
        ("clairvoyant", 1.12, "over the clairvoyant run, geometric mean"),
    ):
        yield Claim(text=text, asked=asked, found=mean(results, other, cells))
    yield Claim(
        text="over the clairvoyant run, the worst cell", asked=1.30,
        found=worst(results, "clairvoyant", cells),
    )  # fmt: skip
    for cell in cells:
        if cell in LIMITS_PER_CELL:
            yield Claim(
                text=f"over tuned Ray, {'/'.join(cell)}", asked=LIMITS_PER_CELL[cell],
                found=worst(results, REFERENCE, [cell]),
            )  # fmt: skip
    for peers, asked, how in (
        (PEERS, 1.0, "without"),
        ([f"{peer}, hindsight" for peer in PEERS], 1.05, "with"),
    ):
        found = _over_best(results, cells, peers)
        yield Claim(
            text=f"over the best peer {how} hindsight that attains, the worst cell",
            asked=asked,
            found=_largest(found or []),
            alone=found == [],
        )


def mean(results: Results, other: str, cells: Cells) -> float | None:
    """Ours over another: the larger of the geometric means; None where a run is missing."""
    found = [results.mean_ratio(OURS, other, cells, one) for one in results.responses]
    return _largest(found)


def worst(results: Results, other: str, cells: Cells) -> float | None:
    """Ours over another: the largest of all cells and responses; None where a run is missing."""
    return _largest(
        [results.ratio(OURS, other, cell, one) for cell in cells for one in results.responses]
    )


def _over_best(results: Results, cells: Cells, others: Sequence[str]) -> list[float] | None:
    """Ours over the cheapest of them that attains, per cell where there is one; None where one of
    them, or ours, was not run. Peers are played under the first response."""
    found: list[float] = []
    for cell in cells:
        for response in results.responses[:1]:
            figures = {one: results.figure(one, cell, response) for one in others}
            if None in figures.values():
                return None
            held = [one for one, figure in figures.items() if figure is not None and figure.attains]
            ratios = [results.ratio(OURS, one, cell, response) for one in held]
            if None in ratios:
                return None
            found += [max(one for one in ratios if one is not None)] if ratios else []
    return found


def _attained(results: Results, cell: tuple[str, str]) -> float | None:
    found = [results.figure(OURS, cell, one) for one in results.responses]
    shares = [one.attained for one in found if one is not None and one.attained is not None]
    return min(shares, default=None)


def _worst(
    results: Results, cells: Cells, values: Sequence[float | None], *, least: bool
) -> float | None:
    held = [one for one in values if one is not None]
    if len(held) != len(cells) or not results.rows:
        return None
    return min(held) if least else max(held)


def _largest(values: Sequence[float | None]) -> float | None:
    held = [one for one in values if one is not None]
    return max(held) if held and len(held) == len(values) else None
