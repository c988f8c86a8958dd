"""Engine steps: read from the step link's events, and judged as a series."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from policies.model.attribution import share_pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from policies.core.attribution import StepShare
    from serve_app.engine.step_link import StepEvent

OUTLIER_MADS = 6.0  # a step further above its like than this was disturbed from outside
MAD_FLOOR_RATIO = 0.02  # clock and scheduler jitter: never call a step within it an outlier
_MIN_CLASS = 5  # below this many steps of one composition there is no "like" to compare with


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One engine step. `num_seqs`: sequences with work in it; `kv_tokens`: the context of all of
    them after the step, summed; `prefill_tokens`: prompt tokens computed; `attended_pairs`: those
    of `policies.model.latency.attended_pairs`, summed over the prompts. Monotonic seconds."""

    start_s: float
    end_s: float
    num_seqs: int
    kv_tokens: int
    prefill_tokens: int
    max_context_tokens: int = 0
    attended_pairs: float = 0.0

    @property
    def time_s(self) -> float:
        """Length of the step."""
        return self.end_s - self.start_s


def step_of(shares: Sequence[StepShare], start_s: float, end_s: float) -> Step:
    """The step in which requests had these shares."""
    return Step(
        start_s=start_s,
        end_s=end_s,
        num_seqs=len(shares),
        kv_tokens=sum(share.context_tokens for share in shares),
        prefill_tokens=sum(share.prefill_tokens for share in shares),
        max_context_tokens=max((share.context_tokens for share in shares), default=0),
        attended_pairs=sum(share_pairs(share) for share in shares),
    )


class StepRecorder:
    """Steps from engine events, in order. Steps run one at a time: a step takes from its own begin,
    or the end of the step before if that came later, to its end."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._begun: list[StepEvent] = []
        self._last_end_s = -math.inf

    @property
    def busy(self) -> bool:
        """Whether a step has begun and not ended."""
        return bool(self._begun)

    def on_event(self, event: StepEvent) -> None:
        """Take one event of the engine's step link."""
        if event.kind == "b":
            self._begun.append(event)
        elif event.kind == "d":
            self._begun.clear()  # begins and ends no longer pair up
        elif event.kind == "e" and self._begun:
            begin = self._begun.pop(0)
            start_s = max(begin.time_s, self._last_end_s)
            self.steps.append(step_of(begin.shares, start_s, event.time_s))
            self._last_end_s = event.time_s


def outliers(steps: Sequence[Step]) -> list[bool]:
    """Which steps took far longer than the steps of the same composition (median + 6 MAD)."""
    classes: dict[tuple[int, int], list[float]] = {}
    for step in steps:
        classes.setdefault(_composition(step), []).append(step.time_s)
    limits = {
        key: median(times) + OUTLIER_MADS * _spread(times)
        for key, times in classes.items()
        if len(times) >= _MIN_CLASS
    }
    return [step.time_s > limits.get(_composition(step), math.inf) for step in steps]


def drift_ratio(steps: Sequence[Step]) -> float | None:
    """Median step time of the second half over the first half, minus 1, for the most frequent
    composition; None with fewer than ten such steps."""
    if not steps:
        return None
    (composition, size), *_ = Counter(_composition(step) for step in steps).most_common(1)
    if size < 2 * _MIN_CLASS:
        return None
    times = [step.time_s for step in steps if _composition(step) == composition]
    half = len(times) // 2
    return median(times[half:]) / median(times[:half]) - 1.0


def _composition(step: Step) -> tuple[int, int]:
    return step.num_seqs, step.prefill_tokens


def _spread(times: Sequence[float]) -> float:
    """MAD, scaled to a normal's standard deviation, not below 2 % of the median."""
    middle = median(times)
    mad = 1.4826 * median(abs(t - middle) for t in times)
    return max(mad, MAD_FLOOR_RATIO * middle)
