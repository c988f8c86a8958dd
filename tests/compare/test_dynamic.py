"""The dynamic part: who is run how, and a row from a real bench against a known server."""

from __future__ import annotations

import pytest
from bench_server import Server, running, streaming

from serve_app.bench.options import BenchOptions
from serve_app.bench.runner import run_bench
from serve_app.compare.configs import Base
from serve_app.compare.dynamic import contenders, dynamic_row, estimate_of
from serve_app.compare.options import CompareOptions
from serve_app.compare.probe import ProbeReading
from serve_app.compare.run import idle_remark


def test_stock_runs_with_rays_default_and_with_each_target_asked_for():
    found = contenders(CompareOptions(stock_targets=(2.0, 16.0), profile="p"))
    assert [c.name for c in found] == ["stock", "stock, target 2", "stock, target 16", "ours"]
    assert [c.app.target_ongoing_requests for c in found] == [None, 2.0, 16.0, None]
    assert {c.app.max_replicas for c in found} == {2}
    assert [c.app.ours for c in found] == [False, False, False, True]
    assert found[-1].app.mode is None
    assert found[-1].app.profile == "p"


def reading(joules):
    return ProbeReading(
        joules=joules, replica_seconds=7.0, min_replicas=1, max_replicas=2, samples=((0.0, 1),)
    )


@pytest.fixture(scope="module")
def bench():
    def books(n):
        sums = {"meter": 10.0 + n, "attributed": 5.0, "open": 0.0, "idle": 1.0, "unattributed": 0.0}
        replicas = [{"replica": "a", "num_running": 0, "max_num_active_seqs": 4}]
        return {**{f"{k}_joules": v for k, v in sums.items()}, "replicas": replicas}

    with running(Server(streaming(), books=books)) as server:
        return run_bench(
            BenchOptions(url=server.url, rate_per_s=20, duration_s=0.5, output_tokens="3")
        )


@pytest.mark.parametrize("joules", [12.0, None])
def test_a_row_has_the_probes_joules_beside_what_the_server_says(bench, joules):
    (contender, *_) = contenders(CompareOptions())
    row = dynamic_row(contender, bench, reading(joules), {"stock/engine": 1.0})
    completed = row["requests"]["completed"]
    assert completed > 0
    assert row["joules_per_request"] == (None if joules is None else joules / completed)
    assert row["own_meter_joules"] is not None
    assert row["own_joules_per_request"] == row["own_meter_joules"] / completed
    assert (row["replica_seconds"], row["replicas"]) == (7.0, {"min": 1, "max": 2})


def test_a_server_without_books_has_no_joules_of_its_own():
    with running(Server(streaming())) as server:
        result = run_bench(BenchOptions(url=server.url, rate_per_s=20, duration_s=0.3))
    (contender, *_) = contenders(CompareOptions())
    row = dynamic_row(contender, result, reading(1.0), {})
    assert row["own_meter_joules"] is None
    assert row["own_joules_per_request"] is None


def test_both_are_estimated_with_the_watts_of_the_file(tmp_path):
    energy = {"meter": {"estimated": {"watts_per_busy_core": 7.5, "idle_watts": 0.5}}}
    base = Base(path=tmp_path, model="m", source="s", llm_config={}, ingress={}, energy=energy)
    settings = estimate_of(base)
    assert (settings.watts_per_busy_core, settings.idle_watts) == (7.5, 0.5)


def test_what_is_not_idle_at_rest_is_named():
    idle = {"wall_s": 10.0, "cpu_s": {"a/server": 0.1, "a/engine": 0.1, "b/engine": 2.0}}
    text = idle_remark("overhead", idle)
    assert "a 2.0%" in text
    assert text.endswith("more than 5%: b")
