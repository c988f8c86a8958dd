"""How quick the compiled fleet is: `python -m serve_app.simulator.bench` prints the figures."""

from __future__ import annotations

import time

import numpy as np
import typer

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


def main() -> None:
    """Compile, then print one line per fleet size."""
    keep_compiled()
    tokens_per_s(1, 100)
    load = f"{PROMPT_TOKENS} + {OUTPUT_TOKENS} tokens, {REQUESTS_PER_REPLICA_S:g} requests/s each"
    typer.echo(f"{PROFILE}, {load}; measured, one core")
    for replicas, requests in ((1, 50_000), (10, 200_000), (100, 400_000), (1000, 400_000)):
        rate = tokens_per_s(replicas, requests)
        typer.echo(f"{replicas:>5} replicas  {rate / 1e6:6.1f} million output tokens/s")


if __name__ == "__main__":
    main()
