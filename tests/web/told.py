"""A ledger with a history, decisions and requests, as replicas and the fleet tick fill it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "decisions"))

from recorded import FLEET, PROFILES, records, seen

from serve_app.decisions.feed import FleetRow
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.ledger import LedgerState
from serve_app.observers.metrics import MetricSet
from serve_app.push import Push, families_of

DEPLOYMENT = "EnergyLLMServer:m"
LABELS = {"application": "llm", "deployment": DEPLOYMENT, "replica": "r0", "model": "m"}
OFF = DecisionLogSettings(enabled=False)
LIMIT = {
    "actuator": "agent", "available": True, "reason": None, "held": True, "holder": "llm r0",
    "natural_draw_watts": 690.0, "asked_watts": 300.0, "limit_watts": 300.0,
    "enforced_watts": 300.0, "most_watts": None, "drift_watts": None, "inert": False,
    "clock_mhz": None,
}  # fmt: skip


def ended(number):
    return {
        "time_utc_s": 1.8e9 + number, "request": f"chatcmpl-{number:08x}", "replica": "r0",
        "prompt_tokens": 100 + number, "output_tokens": 20, "ttft_s": 0.12, "tpot_s": 0.031,
        "e2e_s": 0.7, "joules": 3.0 + number, "verdict": "met" if number % 5 else "missed_ttft",
    }  # fmt: skip


def told_ledger(ticks=40):
    """A LedgerState after `ticks` pushes, five seconds apart, and the time of the last."""
    ledger, metrics = LedgerState("llm"), MetricSet(LABELS)
    watched = [seen(10.0 * k, 20.0 * k) for k in range(1, 4)]
    lines = [one.model_dump_json() for one in records(watched)]
    (fleet,) = records(watched[:1], FLEET)
    lines.append(fleet.model_copy(update={"id": "f0"}).model_dump_json())
    now_s = 0.0
    for k in range(ticks):
        now_s = 5.0 * k
        metrics.set("jouleserve_power_watts", 250.0 + 10 * (k % 7), device="gpu")
        metrics.inc("jouleserve_requests", 5.0, outcome="stop")
        metrics.inc("jouleserve_slo_requests", 4.0, verdict="met")
        metrics.inc("jouleserve_slo_requests", 1.0, verdict="missed_ttft")
        ledger.push(
            Push(
                deployment=DEPLOYMENT,
                replica="r0",
                model="m",
                families=families_of(metrics.registry),
                books={
                    "meter": 60.0 * k, "attributed": 50.0 * k, "open": 0.0, "idle": 10.0 * k,
                    "unattributed": 0.0, "prepaid": 0.0,
                },
                knobs={"max_num_active_seqs": 64, "num_running": 3, "num_waiting": 1},
                limit=LIMIT,
                metered={"gpu": 60.0 * k},
                devices=[{
                    "id": "GPU-0", "kind": "gpu", "name": "H100", "joules": 60.0 * k,
                    "source": "counter", "reason": None,
                }],
                requests=[ended(k)],
            ),
            now_s,
        )  # fmt: skip
        ledger.fleet(
            FleetRow(
                application="llm", deployment=DEPLOYMENT, replicas=1, requested_replicas=2,
                min_replicas=1, max_replicas=4, decisions={("no_better_point", False): k},
                decision_s=0.002,
            ),
            now_s,
        )  # fmt: skip
        if k == ticks // 2:
            ledger.decide(lines[:3], PROFILES, OFF, now_s)
    ledger.decide(lines[3:], PROFILES, OFF, now_s)
    return ledger, now_s
