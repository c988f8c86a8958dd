"""How quick the compiled fleet is: `python -m serve_app.simulator.bench` prints the figures.

`--week` plays a week of 16.8 million requests instead, which takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from serve_app.deciders import load_profile
from serve_app.simulator.compiled import keep_compiled

PROFILE = "llama-3.1-8b-instruct@h100"
PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS_PER_REPLICA_S, CAP = 500, 200, 5.0, 64


def tokens_per_s(replicas: int, requests: int) -> float:
    """Output tokens simulated per second of this core."""
    from policies.sim import kernel
    from policies.sim.coefficients import coefficients
    from policies.sim.fleet_state import DONE, REACHED, Arrivals, new_fleet

    model = load_profile(PROFILE)
    assert model is not None  # it is named
    fleet = new_fleet(
        coefficients(model, [None]), replicas=replicas, max_num_seqs=256,
        budget_tokens=2048, kv_capacity_tokens=500_000, slots=200_000, done=100_000,
    )  # fmt: skip
    for replica in range(replicas):
        kernel.set_cap(fleet, replica, CAP, 0.0)
        kernel.accept(fleet, replica, 0.0)
    gaps_s = np.random.default_rng(0).exponential(
        1.0 / (REQUESTS_PER_REPLICA_S * replicas), requests
    )
    arrivals = Arrivals(
        np.cumsum(gaps_s), np.full(requests, PROMPT_TOKENS), np.full(requests, OUTPUT_TOKENS)
    )
    begin_s, code, used = time.process_time(), -1, 0
    while code != REACHED:
        code, used = kernel.advance(fleet, 1e12, arrivals, used, True)
        fleet.numbers[DONE] = 0
    return requests * OUTPUT_TOKENS / (time.process_time() - begin_s)


def main(arguments: list[str] | None = None) -> int:
    """Compile, then print one line per fleet. 0 always."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--week", action="store_true", help="16.8 million requests; minutes")
    parser.add_argument("--out", type=Path, help="with --week: folder for report.md, result.json")
    options = parser.parse_args(arguments)
    if options.out is not None and not options.week:
        parser.error("--out goes with --week")
    keep_compiled()
    if options.week:
        _week(options.out, [*(sys.argv[1:] if arguments is None else arguments)])
    else:
        _speed()
    return 0


def _speed() -> None:
    tokens_per_s(1, 100)
    load = f"{PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens, {REQUESTS_PER_REPLICA_S:g} requests/s each"
    print(f"{PROFILE}, {load}; measured, one core")
    for replicas, requests in ((1, 50_000), (10, 200_000), (100, 400_000), (1000, 400_000)):
        rate = tokens_per_s(replicas, requests)
        print(f"{replicas:>5} replicas  {rate / 1e6:6.1f} million output tokens/s")


def _week(out: Path | None, arguments: list[str]) -> None:
    from serve_app.simulator import scale

    found = []
    print(f"{scale.PROFILE}, {scale.TRACE}; measured, one core", scale.HEAD, scale.RULE, sep="\n")
    for one in scale.scales():
        found.append(one)
        print(scale.line(one), flush=True)
    print(*scale.growth(found), sep="\n")
    if out is not None:
        scale.write(found, out, " ".join(["python -m serve_app.simulator.bench", *arguments]))


if __name__ == "__main__":
    sys.exit(main())
