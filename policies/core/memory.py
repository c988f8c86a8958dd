"""What a tick has learned and hands on: lengths, a margin, how load grows, how many were needed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from policies.core.lengths import WEIGHTS, mean_of

LENGTHS_EVERY_S = 10.0
LENGTHS_CHANGE_RATIO = 0.06  # of the mean; three times as much in a bin
MARGIN_STEP = 0.015  # per missed request
MARGIN_LOW, MARGIN_HIGH = -0.6, 0.6
PRIOR_MISSES = 3.0  # of each kind
PRESSURE_STEP = 0.05  # per missed request of a replica
# What is left over is spent with care: the load that overloads a fleet spends it all at once.
PRESSURE_LOW, FIRST_PRESSURE, PRESSURE_HIGH = -0.5, 0.4, 1.5
DEBT_HIGH = 1.5  # misses beyond what the margin can answer are remembered up to here


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Of one tick's owner. A replica uses the lengths, the margin and the peak; a fleet uses the
    levels, the growth and the needs as well. Tuples of numbers, so that it is JSON-able.

    `prompt_bins`, `output_bins`: what tables are made of. `judged`, `late`, `slow`: the counters as
    last seen. `levels`: the last mean loads of 10 s, requests/s, newest last; `longs`: beside the
    newest of them the smoothed load; `grown`: how often the log of growth fell in each bin, from
    three bases in three states (`policies.core.forecast`); `top_per_s`: the highest level,
    forgotten over four hours; `needs`: (time, replicas), the most that were wanted lately:
    descending. `seen_s`: for how long the load has been watched. `first_replicas`: when the fleet
    was first seen. `counted`: (replica, requests judged, of them missed) as last seen; `pressure`:
    the log of the factor by which fewer misses are planned for than may be.
    """

    time_s: float | None = None
    margin: float | None = None
    pace_margin: float | None = None
    judged: float = 0.0
    late: float = 0.0
    slow: float = 0.0
    lengths_s: float | None = None
    prompt_bins: tuple[float, ...] = ()
    output_bins: tuple[float, ...] = ()
    peak_per_s: float = 0.0
    top_per_s: float = 0.0
    level_s: float = 0.0
    level_sum: float = 0.0
    level_count: int = 0
    levels: tuple[float, ...] = ()
    longs: tuple[float, ...] = ()
    grown: tuple[tuple[float, ...], ...] = ((),) * 9
    needs: tuple[tuple[float, int], ...] = ()
    seen_s: float = 0.0
    first_replicas: int = 0
    counted: tuple[tuple[str, float, float], ...] = ()
    pressure: float = FIRST_PRESSURE

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Memory:
        """From `dataclasses.asdict`, after JSON."""
        values = dict(data)
        for item in fields(cls):
            if isinstance(values.get(item.name), list):
                values[item.name] = tuple(
                    tuple(one) if isinstance(one, list) else float(one) for one in values[item.name]
                )
        return cls(**values)


def with_margins(
    memory: Memory, counters: tuple[float, float, float], allowed_ratio: float
) -> Memory:
    """The margins after what was judged since the last call: requests, those whose first token was
    late, those that then decoded too slowly, counted since their replica started.

    Adaptive conformal inference (Gibbs and Candès, NeurIPS 2021): each miss raises its margin by a
    step, each request lowers both by that step times the share that may miss, so that in the long
    run this share misses, whatever is wrong with the model. What may miss is split between the two
    as the misses so far are. A margin is the log of a factor on modelled times. Counters that fell
    began anew.
    """
    judged, late, slow = counters
    if not math.isfinite(judged + late + slow) or judged < 0.0:
        return memory
    if (judged, late, slow) == (memory.judged, memory.late, memory.slow):
        return memory
    again = judged < memory.judged
    more = judged - (0.0 if again else memory.judged)
    steps = []
    for now, before in ((late, memory.late), (slow, memory.slow)):
        share = (now + PRIOR_MISSES) / (late + slow + 2.0 * PRIOR_MISSES)
        missed = max(now - (0.0 if again else before), 0.0)
        steps.append(MARGIN_STEP * (missed - more * allowed_ratio * share))
    return replace(
        memory,
        margin=_inside((memory.margin or 0.0) + steps[0]),
        pace_margin=_inside((memory.pace_margin or 0.0) + steps[1]),
        judged=judged,
        late=late,
        slow=slow,
    )


def with_pressure(
    memory: Memory,
    counted: Iterable[tuple[str, float, float]],
    allowed_ratio: float,
    known: Collection[str] = (),
) -> Memory:
    """The pressure after what all replicas have judged since the last call, in the same way as a
    margin: what the fleet as a whole misses beyond the allowed share raises it, what it does not
    use up lowers it. A step is shared by the replicas: more of them judge more. `known`: replicas
    that may report again; what they missed meanwhile counts then."""
    counted = tuple(counted)
    before = {name: (judged, missed) for name, judged, missed in memory.counted}
    beyond = 0.0
    for name, judged, missed in counted:
        old_judged, old_missed = before.get(name, (judged, missed))
        if judged < old_judged:
            old_judged = old_missed = 0.0
        beyond += max(missed - old_missed, 0.0) - allowed_ratio * (judged - old_judged)
    step = PRESSURE_STEP / max(len(counted), 1) * beyond
    pressure = min(max(memory.pressure + step, PRESSURE_LOW), PRESSURE_HIGH)
    silent = {one[0] for one in memory.counted}.intersection(known) - {one[0] for one in counted}
    kept = tuple(one for one in memory.counted if one[0] in silent)
    return replace(memory, counted=(*counted, *kept), pressure=pressure)


def lengths_due(memory: Memory, now_s: float) -> bool:
    """Whether `with_lengths` would look at lengths at all."""
    seen_s = memory.lengths_s
    return seen_s is None or not 0.0 <= now_s - seen_s < LENGTHS_EVERY_S


def with_lengths(
    memory: Memory,
    now_s: float,
    prompts: Sequence[float] | None,
    outputs: Sequence[float] | None,
) -> Memory:
    """The lengths that were reported, looked at every 10 s and taken where they differ by more than
    noise: a new table costs a millisecond."""
    if prompts is None or outputs is None or not lengths_due(memory, now_s):
        return memory
    if not len(prompts) == len(WEIGHTS) == len(outputs):
        return memory
    if _differs(memory.prompt_bins, prompts) or _differs(memory.output_bins, outputs):
        prompts, outputs = tuple(map(float, prompts)), tuple(map(float, outputs))
        return replace(memory, lengths_s=now_s, prompt_bins=prompts, output_bins=outputs)
    return replace(memory, lengths_s=now_s)


def with_need(memory: Memory, now_s: float, replicas: int, window_s: float) -> Memory:
    """The need of now beside those of the last `window_s`; the first is the largest."""
    kept = [one for one in memory.needs if 0.0 <= now_s - one[0] <= window_s]
    while kept and kept[-1][1] <= replicas:
        kept.pop()
    return replace(memory, needs=(*kept, (now_s, replicas)))


def _differs(old: Sequence[float], new: Sequence[float]) -> bool:
    if len(old) != len(new):
        return True
    mean = max(mean_of(new), 1.0)
    if abs(mean_of(old) - mean) > LENGTHS_CHANGE_RATIO * mean:
        return True
    return any(
        abs(one - other) > 3.0 * LENGTHS_CHANGE_RATIO * max(mean, other)
        for one, other in zip(old, new, strict=True)
    )


def _inside(margin: float) -> float:
    return min(max(margin, MARGIN_LOW), DEBT_HIGH)
