"""A fixed fleet for the peak of a trace: what is rented where nothing scales.

Full batch and full power, or one fixed limit. The count may be given, or computed in hindsight from
the trace by `replicas_for_peak`, which knows the peak before it comes: stronger than a fleet sized
beforehand.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from policies.core.errors import ConfigError
from policies.core.observe import View
from policies.core.types import (
    ControlSettings,
    Load,
    OperatingPoint,
    Reason,
)
from policies.model.fitted import FittedModel
from policies.peer_parts import (
    Ask,
    Limit,
    Wish,
    WishingPeer,
    fewest_replicas,
    limit_at_least,
)
from policies.sim.arrivals import TraceRow

PEAK_WINDOW_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StaticPeak(WishingPeer):
    """`num_replicas` at all times, with the full batch; `power_limit_watts` None: full power. A
    limit that is not allowed becomes the next higher one that is."""

    NAME: ClassVar[str] = "static_peak"

    num_replicas: int
    power_limit_watts: float | None = None

    def __post_init__(self) -> None:
        if not self.num_replicas >= 1:
            raise ConfigError(
                f"policy static_peak: num_replicas is {self.num_replicas}; allowed: 1 or more"
            )

    def _wish(self, ask: Ask, view: View) -> Wish:
        replicas = self.num_replicas if ask.chooses_replicas else view.present.num_replicas
        point = OperatingPoint(
            num_replicas=replicas,
            max_num_active_seqs=ask.bounds.max_num_seqs,
            power_limit_watts=limit_at_least(self.power_limit_watts, ask.bounds),
        )
        return Wish(point=point, reason=Reason.STATIC)


def peak_load(trace: Iterable[TraceRow], window_s: float = PEAK_WINDOW_S) -> Load:
    """The most requests/s over any `window_s` seconds, and the mean lengths of all requests. The
    trace in the order of arrival; ConfigError where it is empty or the window is not above 0."""
    if not window_s > 0.0:
        raise ConfigError(f"window_s is {window_s}; allowed: above 0")
    inside: deque[float] = deque()
    most = count = prompts = outputs = 0
    for row in trace:
        inside.append(row.arrival_s)
        while inside[0] <= row.arrival_s - window_s:
            inside.popleft()
        most = max(most, len(inside))
        count += 1
        prompts += row.prompt_tokens
        outputs += row.output_tokens
    if not count:
        raise ConfigError("the trace is empty: no peak to be sized for")
    return Load(
        arrival_rate_per_s=most / window_s,
        prompt_tokens=prompts / count,
        output_tokens=outputs / count,
    )


def replicas_for_peak(
    model: FittedModel, peak: Load, settings: ControlSettings, limit: Limit = None
) -> int:
    """The fewest replicas in bounds of which the model says that they hold the SLO at the peak with
    the full batch under the limit; all of them where it says so of none."""
    slo, bounds = settings.slo, settings.bounds
    found = fewest_replicas(model, peak, slo, bounds, limit_at_least(limit, bounds))
    return max(bounds.max_replicas, 1) if found is None else found
