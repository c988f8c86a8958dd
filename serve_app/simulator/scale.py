"""A week of load over large fleets: wall time and memory, for `serve_app.simulator.bench --week`.

The load is the preset `code-2024` (docs/traces.md): 16.8 million requests in a week, generated
block by block while they are played. The fleets are fixed, and every request goes to the replica
with the fewest outstanding ones: this is the simulator's own cost, a policy's comes on top.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from policies.core.types import Bounds, ControlSettings
from policies.static import Static
from serve_app.deciders import load_profile
from serve_app.profiler.host import commit, host_facts, versions
from serve_app.repository import REPOSITORY
from serve_app.simulator.compiled import keep_compiled
from serve_app.traces.load import TraceOptions, load_trace

TRACE = "code-2024"
PROFILE = "llama-3.1-405b-instruct-fp8@h100-tp8"  # of those shipped, it needs the most replicas
DAY_S, WEEK_S = 86_400.0, 604_800.0
FLEETS = ((300, DAY_S), (300, WEEK_S), (1000, DAY_S), (1000, WEEK_S))
WARM_S = 43_200.0
TICK_S = 10.0
NEVER = 1 << 40  # ticks
MIB = 1024.0  # of what getrusage calls a unit, a KiB on Linux


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """One run. `wall_s`, `cpu_s`: of generating and playing; `peak_mib`: the process's largest
    resident set up to the end of this run."""

    replicas: int
    simulated_s: float
    requests: int
    output_tokens: int
    preemptions: int
    idle_joules_ratio: float
    wall_s: float
    cpu_s: float
    peak_mib: float

    @property
    def requests_per_s(self) -> float:
        """Of CPU time."""
        return self.requests / self.cpu_s

    @property
    def tokens_per_s(self) -> float:
        """Output tokens, of CPU time."""
        return self.output_tokens / self.cpu_s


def scale(
    replicas: int, simulated_s: float, *, trace: str = TRACE, profile: str = PROFILE, seed: int = 0
) -> Scale:
    """Play the first seconds of the trace. Raises ConfigError."""
    keep_compiled()
    from policies.sim.fleet import simulate
    from policies.sim.outcome import SimSettings

    model = load_profile(profile)
    assert model is not None, "it is named"
    settings = SimSettings(
        control=ControlSettings(bounds=Bounds(max_replicas=replicas)),
        initial_replicas=replicas,
        tick_s=TICK_S,
        replica_every=NEVER,
        fleet_every=NEVER,
        tails_every=NEVER,
    )
    load = load_trace(trace, TraceOptions(duration_s=simulated_s), seed=seed)
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    result = simulate(load.blocks(), model, Static(num_replicas=replicas), settings)
    wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    assert result.completed == result.arrived, "a fixed fleet loses nothing"
    return Scale(
        replicas=replicas,
        simulated_s=simulated_s,
        requests=result.completed,
        output_tokens=result.output_tokens,
        preemptions=result.preemptions,
        idle_joules_ratio=result.idle_joules / result.joules,
        wall_s=wall_s,
        cpu_s=cpu_s,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB,
    )


def scales(fleets: Sequence[tuple[int, float]] = FLEETS) -> Iterator[Scale]:
    """One after another, once the compiled code is there and half a day has been played."""
    scale(fleets[0][0], WARM_S)
    for replicas, simulated_s in fleets:
        yield scale(replicas, simulated_s)


HEAD = (
    "| replicas | simulated | requests | output tokens | wall, s | CPU, s | requests/s "
    "| output tokens/s | idle share of J | peak memory, MiB |"
)
RULE = "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"


def line(one: Scale) -> str:
    """A row of the table."""
    return (
        f"| {one.replicas:,} | {one.simulated_s / DAY_S:g} days | {one.requests:,} "
        f"| {one.output_tokens:,} | {one.wall_s:.0f} | {one.cpu_s:.0f} | {one.requests_per_s:,.0f} "
        f"| {one.tokens_per_s / 1e6:.2f} million | {one.idle_joules_ratio:.0%} "
        f"| {one.peak_mib:.0f} |"
    )


def growth(found: Sequence[Scale]) -> Iterator[str]:
    """Per fleet size, what the longest run needed beyond the shortest."""
    for replicas in dict.fromkeys(one.replicas for one in found):
        mine = sorted(
            (one for one in found if one.replicas == replicas), key=lambda one: one.simulated_s
        )
        if len(mine) > 1:
            first, last = mine[0], mine[-1]
            yield (
                f"{replicas:,} replicas: {last.requests / first.requests:.1f} times the requests, "
                f"{last.peak_mib - first.peak_mib:+.1f} MiB of peak memory."
            )


def write(found: Sequence[Scale], folder: Path, command: str) -> None:
    """report.md and result.json."""
    folder.mkdir(parents=True, exist_ok=True)
    machine = host_facts()
    page = [
        "# The simulator at scale",
        "",
        f"Made by `{command}`. Requests, fleets and joules are **simulated**; time and memory are",
        f"**measured**: one process, one core of {machine.get('cpu', '?')}, compiled code at hand.",
        "",
        f"Load: `{TRACE}` (docs/traces.md; 16.8 million requests a week), generated while played.",
        f"Model: `{PROFILE}`, fixed fleets, least outstanding requests. Most of each fleet idles:",
        "an idle replica costs the simulator as much as a busy one at every arrival. Policies'",
        "decisions are not in it. Rates are by CPU seconds, since others used the machine too.",
        "",
        HEAD,
        RULE,
        *map(line, found),
        "",
        *(f"- {one}" for one in growth(found)),
        "",
    ]
    (folder / "report.md").write_text("\n".join(page), encoding="utf-8")
    result = {
        "schema_version": 1,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "trace": TRACE,
        "profile": PROFILE,
        "source": commit(REPOSITORY),
        "machine": machine,
        "versions": versions(),
        "runs": [
            asdict(one)
            | {"requests_per_s": one.requests_per_s, "output_tokens_per_s": one.tokens_per_s}
            for one in found
        ],
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
