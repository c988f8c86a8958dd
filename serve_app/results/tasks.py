"""The work, in parts that one process does on its own, in the order in which results matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from serve_app.results.cells import Cell, Variation
from serve_app.results.contest import (
    peers,
    tuned_clairvoyant,
    tuned_limit,
    tuned_peer,
    tuned_ray,
    tuned_static,
)
from serve_app.results.lab import Bench, Lab
from serve_app.results.tuning import Tuned
from serve_app.simulator.specs import PolicySpec, parse_spec

OURS = parse_spec("energy_slo")
LEVERS = {
    "replicas": "num_replicas",
    "replicas, packed": "num_replicas+pack_seqs",
    "batch cap": "max_num_active_seqs",
    "power limit": "power_limit",
    "power limit and batch cap": "power_limit+max_num_active_seqs",
    "replicas and power limit": "num_replicas+power_limit",
    "all, spread": "num_replicas+power_limit+max_num_active_seqs",
}
VARIATIONS = (
    Variation(name="belief: 0.8 x the speed", belief_speed=0.8),
    Variation(name="belief: 1.2 x the speed", belief_speed=1.2),
    Variation(name="cold start 180 s", cold_start_s=180.0),
    Variation(name="reports 10 s old", report_delay_s=10.0),
    Variation(name="bursts 1.5 x as high", burst_ratio=1.5),
)
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A row of the tables on one cell. `stage`: those of a stage need what the earlier ones found;
    `detail`: the peer, lever or variation. `cost`: a rough guess, in simulated hours of a fleet."""

    kind: str
    cell: Cell
    response: str
    stage: int
    detail: str = ""

    @property
    def name(self) -> str:
        """For people."""
        parts = (self.cell.name, self.kind, self.detail, self.response)
        return " ".join(part for part in parts if part)

    @property
    def cost(self) -> float:
        """Relative to the others: hours times runs, roughly."""
        cell = self.cell
        hours = 1.5 if cell.quick or not cell.facts.sampled else 24.0
        searched = sum(length_s for _, length_s in cell.excerpts) / 3600.0 or hours
        whole, tries = _EFFORT[self.kind]
        if self.kind in _SAMPLED and cell.sampled:
            whole, tries = 0.0, tries + whole
        size = 2.5 if cell.model != next(iter(cell.file.models)) else 1.0
        return size * (whole * hours + tries * searched)


_SAMPLED = frozenset({"clairvoyant", "peer", "hindsight"})
# Kind → whole runs, runs of the excerpts; roughly.
_EFFORT = {
    "baseline": (2.0, 15.0),
    "ours": (2.0, 0.0),
    "limit": (1.5, 20.0),
    "clairvoyant": (1.5, 10.0),
    "peer": (1.0, 0.0),
    "hindsight": (2.0, 10.0),
    "lever": (1.0, 0.0),
    "variation": (1.0, 0.0),
}


def tasks_of(cells: Iterable[Cell]) -> list[Task]:
    """All of them; within a stage the longest first."""
    found: list[Task] = []
    for cell in cells:
        every = cell.file.cap_responses
        first = every[:1]
        found += [_task("baseline", cell, "", 0)]
        found += [_task("ours", cell, one, 0) for one in every]
        found += [_task("limit", cell, one, 1) for one in every]
        found += [_task("clairvoyant", cell, one, 1) for one in every]
        for name in peers(None, None):
            found += [_task("peer", cell, first[0], 2, name)]
            found += [_task("hindsight", cell, first[0], 4, name)]
        if cell.facts.study:
            found += [_task("lever", cell, first[0], 3, name) for name in LEVERS]
            found += [
                _task("variation", cell, first[0], 3, one.name)
                for one in VARIATIONS
                if one.burst_ratio == 1.0 or cell.generated
            ]
    return sorted(found, key=lambda task: (task.stage, -task.cost))


def _task(kind: str, cell: Cell, response: str, stage: int, detail: str = "") -> Task:
    response = response or cell.file.cap_responses[0]
    return Task(kind=kind, cell=cell, response=response, stage=stage, detail=detail)


def work(task: Task, lab: Lab) -> list[Row]:
    """Do it, or find it done; its rows of the result file."""
    return _KINDS[task.kind](task, lab)


def _baseline(task: Task, lab: Lab) -> list[Row]:
    bench = Bench(cell=task.cell, response=task.response)
    static = tuned_static(lab, bench)
    ray = tuned_ray(lab, bench, static)
    rows = _seeds(task, lab, "static", static.spec, static)
    rows += _seeds(task, lab, "ray", ray.spec, ray)
    if task.cell.sampled:
        rows.append(_sample(task, lab, "ray", ray.spec, ray))
    # Ray's own settings (target 2), shown and never the headline.
    return [*rows, *_judged(task, lab, "ray_default", parse_spec("ray_default"))]


def _ours(task: Task, lab: Lab) -> list[Row]:
    rows = _seeds(task, lab, "energy_slo", OURS)
    if task.cell.sampled:
        rows.append(_sample(task, lab, "energy_slo", OURS))
    bound = lab.bound(Bench(cell=task.cell, response=task.response))
    return [*rows, _row(task, "bound", 0, bound)]


def _limit(task: Task, lab: Lab) -> list[Row]:
    bench = Bench(cell=task.cell, response=task.response)
    static = tuned_static(lab, bench)
    found = tuned_limit(lab, bench, static, tuned_ray(lab, bench, static))
    return _seeds(task, lab, "ray_limit", found.spec, found)


def _clairvoyant(task: Task, lab: Lab) -> list[Row]:
    found = tuned_clairvoyant(lab, Bench(cell=task.cell, response=task.response))
    return _judged(task, lab, "clairvoyant", found.spec, found)


def _peer(task: Task, lab: Lab) -> list[Row]:
    return _judged(task, lab, task.detail, peers(None, None)[task.detail].default)


def _hindsight(task: Task, lab: Lab) -> list[Row]:
    bench = Bench(cell=task.cell, response=task.response)
    static = tuned_static(lab, bench)
    ray = tuned_ray(lab, bench, static)
    found = tuned_peer(lab, bench, peers(ray.spec, static.spec)[task.detail])
    return _judged(task, lab, f"{task.detail}, hindsight", found.spec, found)


def _lever(task: Task, lab: Lab) -> list[Row]:
    bench = Bench(cell=task.cell, response=task.response)
    knobs = LEVERS[task.detail]
    spec = PolicySpec(
        name="only",
        options={"knobs": knobs},
        router="packed" if "pack_seqs" in knobs else "least",
    )
    if "num_replicas" not in knobs:
        static = tuned_static(lab, bench)
        spec = spec.changed(num_replicas=static.spec.options["num_replicas"])
    return [_row(task, f"lever: {task.detail}", 0, lab.full(bench, spec))]


def _variation(task: Task, lab: Lab) -> list[Row]:
    variation = next(one for one in VARIATIONS if one.name == task.detail)
    bench = Bench(cell=task.cell, response=task.response, variation=variation)
    return [_row(task, f"variation: {task.detail}", 0, lab.full(bench, OURS))]


_KINDS: dict[str, Callable[[Task, Lab], list[Row]]] = {
    "baseline": _baseline,
    "ours": _ours,
    "limit": _limit,
    "clairvoyant": _clairvoyant,
    "peer": _peer,
    "hindsight": _hindsight,
    "lever": _lever,
    "variation": _variation,
}


def _seeds(  # noqa: PLR0913, PLR0917
    task: Task,
    lab: Lab,
    role: str,
    spec: PolicySpec,
    tuned: Tuned | None = None,
    count: int | None = None,
) -> list[Row]:
    """The whole trace, one row per seed of `count`, or of all."""
    rows = []
    for seed in range(task.cell.seeds if count is None else count):
        bench = Bench(cell=task.cell, response=task.response, seed=seed)
        rows.append(_row(task, role, seed, lab.full(bench, spec), tuned))
    return rows


def _judged(
    task: Task, lab: Lab, role: str, spec: PolicySpec, tuned: Tuned | None = None
) -> list[Row]:
    """On what peers are judged by: their seeds, or a sampled cell's excerpts."""
    if task.cell.sampled:
        return [_sample(task, lab, role, spec, tuned)]
    return _seeds(task, lab, role, spec, tuned, task.cell.peer_seeds)


def _sample(task: Task, lab: Lab, role: str, spec: PolicySpec, tuned: Tuned | None = None) -> Row:
    bench = Bench(cell=task.cell, response=task.response)
    return {**_row(task, role, 0, lab.sample(bench, spec), tuned), "part": "excerpts"}


def _row(task: Task, role: str, seed: int, found: Row, tuned: Tuned | None = None) -> Row:
    cell = task.cell
    return {
        "role": role,
        "model": cell.model,
        "load": cell.load,
        "cap_response": task.response,
        "seed": seed,
        "part": "whole",
        "played": cell.played,
        "quick": cell.quick,
        "tried": None if tuned is None else tuned.tried,
        "attains_in_hindsight": None if tuned is None else tuned.attains,
        **{key: value for key, value in found.items() if key != "key"},
    }
