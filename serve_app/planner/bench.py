"""`python -m serve_app.planner.bench`: how fast all points of a plan are evaluated, and that they
are right.

Times the evaluation of at least `--points` operating points, then asks `FittedModel.predict` for
every one of them and compares: the values, and the cheapest point.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np

from policies.core.objective import Candidates
from policies.core.types import SLO, Load, OperatingPoint
from policies.model.fitted import FittedModel
from policies.model.grid import Grid, evaluate
from serve_app.deciders import load_profile

_LIMITS = (None, 700.0, 600.0, 500.0, 450.0, 400.0, 350.0, 300.0)
_ROUNDS = 9


def box_of(model: FittedModel, points: int) -> Candidates:
    """A box of at least so many points: all caps and limits, as many replicas as it takes."""
    caps = model.valid.max_num_seqs
    return Candidates(
        replicas=(1, math.ceil(points / (caps * len(_LIMITS)))), caps=(1, caps), limits=_LIMITS
    )


def brute_force(model: FittedModel, grid: Grid) -> tuple[float, float]:
    """(fewest joules per request that hold, largest relative difference to the grid), asking
    `predict` for each point."""
    fewest, worst = math.inf, 0.0
    for index in np.ndindex(grid.feasible.shape):
        limit, replicas, cap = index
        point = OperatingPoint(
            num_replicas=int(grid.replicas[replicas]),
            max_num_active_seqs=int(grid.caps[cap]),
            power_limit_watts=grid.limits[limit],
        )
        seen = model.predict(point, grid.load, grid.slo)
        if seen.feasible:
            fewest = min(fewest, seen.joules_per_request)
        for name in ("ttft_s", "tpot_s", "draw_watts", "joules_per_request"):
            value = getattr(seen, name)
            worst = max(worst, abs(getattr(grid.values, name)[index] - value) / value)
    return fewest, worst


def main() -> int:
    """Exit status: 0 within `--limit` CPU seconds and right, else 1."""
    parser = argparse.ArgumentParser(description="Time the evaluation of a plan's points.")
    parser.add_argument("--profile", default="llama-3.1-8b-instruct@h100")
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=40.0, help="requests/s")
    parser.add_argument("--limit", type=float, default=1.0, help="CPU seconds")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    options = parser.parse_args()
    model = load_profile(options.profile)
    assert model is not None, "a named profile is loaded"
    load = Load(arrival_rate_per_s=options.rate, prompt_tokens=500.0, output_tokens=200.0)
    slo, box = SLO(ttft_s=1.0, tpot_s=0.05), box_of(model, options.points)
    wall_s, cpu_s = [], []
    for _ in range(_ROUNDS):
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        grid = evaluate(model, load, slo, box)
        picked = grid.cheapest(grid.feasible)
        wall_s.append(time.perf_counter() - begin_s)
        cpu_s.append(time.process_time() - begin_cpu_s)
    begin_s = time.perf_counter()
    fewest, worst = brute_force(model, grid)
    joules = math.inf if picked is None else picked.prediction.joules_per_request
    same = math.isclose(joules, fewest, rel_tol=1e-9)
    result = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "profile": model.name,
        "rate_per_s": options.rate,
        "points": int(grid.feasible.size),
        "feasible_points": int(grid.feasible.sum()),
        "first_s": round(wall_s[0], 4),
        "first_cpu_s": round(cpu_s[0], 4),
        "median_s": round(median(wall_s), 4),
        "median_cpu_s": round(median(cpu_s), 4),
        "one_by_one_s": round(time.perf_counter() - begin_s, 2),
        "largest_relative_difference": float(f"{worst:.2g}"),
        "pick_equals_brute_force": same,
    }
    print(json.dumps(result))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if max(cpu_s) <= options.limit and same and worst < 1e-9 else 1


if __name__ == "__main__":
    raise SystemExit(main())
