"""What is made of logs and records: events, sizes, runs, figures, judgements, the next load."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from policies.core.errors import ConfigError, EngineError
from serve_app.compare.configs import read_base
from serve_app.fidelity.__main__ import next_load
from serve_app.fidelity.figures import (
    Figures,
    client_figures,
    errors,
    measured_figures,
    median_figures,
    simulated_figures,
    worst,
)
from serve_app.fidelity.judge import disturbances, mean_slowness, slowness_of
from serve_app.fidelity.loads import calibration, held_out
from serve_app.fidelity.observed import Books, Conditions, Observed, observed, start_joules
from serve_app.fidelity.pulse import Pulse, windows_s
from serve_app.fidelity.run import lives_of
from serve_app.fidelity.service import Fleet, events_in, fleet_config, sizes_in, with_replicas
from serve_app.fidelity.simulated import Life, Played
from serve_app.repository import REPOSITORY

# As Ray 2.60 and vLLM 0.29 wrote them, shortened on the right.
LOG = """
(ServeController pid=7) INFO 2026-11-22 02:50:44,862 controller 7 -- Adding 1 replica to Deployment(name='EnergyLLMServer:smollm2-135m-instruct', app='ours').
(ServeController pid=7) INFO 2026-11-22 02:50:44,872 controller 7 -- Adding 1 replica to Deployment(name='OpenAiIngress', app='ours').
(ServeReplica:ours:EnergyLLMServer:smollm2-135m-instruct pid=9) INFO 11-22 02:51:54 [scheduler.py:277] Chunked prefill is enabled with max_num_batched_tokens=2048.
(ServeReplica:ours:EnergyLLMServer:smollm2-135m-instruct pid=9) (EngineCore pid=8) INFO 11-22 02:52:20 [kv_cache_utils.py:2033] GPU KV cache size: 46,592 tokens, max
(ServeReplica:ours:EnergyLLMServer:smollm2-135m-instruct pid=9) INFO 2026-11-22 02:52:27,572 ours_EnergyLLMServer:smollm2-135m-instruct fx9jzt2a -- Started vLLM engine.
(ServeController pid=7) INFO 2026-11-22 02:53:33,920 controller 7 -- Removing 1 replica from Deployment(name='EnergyLLMServer:smollm2-135m-instruct', app='ours').
(ServeController pid=7) INFO 2026-11-22 02:53:35,960 controller 7 -- Replica(id='fx9jzt2a', deployment='EnergyLLMServer:smollm2-135m-instruct', app='ours') is stopped.
(ServeController pid=7) INFO 2026-11-22 02:54:10,047 controller 7 -- Replica(id='7ajxbci9', deployment='OpenAiIngress', app='ours') is stopped.
"""


# ---- the service


def test_events_are_those_of_the_engines_deployment_in_order():
    events = events_in(LOG)
    assert [(event.kind, event.replica) for event in events] == [
        ("asked", None),
        ("engine_up", "fx9jzt2a"),
        ("stopping", None),
        ("stopped", "fx9jzt2a"),
    ]
    local = datetime(2026, 11, 22, 2, 52, 27, 572_000)  # the log's times are local
    assert events[1].time_s == pytest.approx(local.timestamp())


def test_the_log_is_read_once_and_only_in_whole_lines(tmp_path):
    fleet = object.__new__(Fleet)
    fleet._events, fleet._read_bytes, fleet._reading = [], 0, threading.Lock()
    fleet.child = SimpleNamespace(log_path=tmp_path / "ray.log")
    cut = LOG.index("Started vLLM")
    fleet.child.log_path.write_text(LOG[:cut])
    assert [event.kind for event in fleet.events] == ["asked"]
    fleet.child.log_path.write_text(LOG)
    assert fleet.events == events_in(LOG) == fleet.events


def test_sizes_are_what_the_engine_says():
    assert (sizes_in(LOG).max_num_batched_tokens, sizes_in(LOG).kv_capacity_tokens) == (2048, 46592)
    with pytest.raises(EngineError, match="kv_capacity_tokens"):
        sizes_in(LOG.replace("KV cache size", ""))


def test_another_replica_count_is_no_new_version_of_the_application(tmp_path, monkeypatch):
    """What Ray hashes into the version: arguments, and the policy of each deployment that has
    autoscaling bounds, so that those have to be there from the start."""
    # Where the weights are is of no interest, and they may not be there yet.
    monkeypatch.setattr("serve_app.compare.configs.resolve_model", lambda name: f"/models/{name}")
    base = read_base(REPOSITORY / "serve_config.yaml")
    config = fleet_config(base, tmp_path / "requests", 1234)

    def version(found):
        (application,) = found["applications"]
        bounds = [d["autoscaling_config"] for d in application["deployments"]]
        return json.dumps([application["args"], [b.get("policy") for b in bounds]])

    two = with_replicas(config, 2)
    assert version(two) == version(config)
    (deployment,) = two["applications"][0]["deployments"]
    assert deployment["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 2}
    assert config["applications"][0]["deployments"][0]["autoscaling_config"]["max_replicas"] == 1
    assert deployment["user_config"] == {"mode": "off"}


def test_replicas_of_a_run_come_and_go_by_the_log():
    """The one that was there may be the one that is given up; one of an earlier run is neither."""
    events = events_in(LOG)
    (up, stopping) = (e.time_s for e in events if e.kind in {"engine_up", "stopping"})
    new = Life(replica="fx9jzt2a", asked_s=up - 40.0, ready_s=up + 1.0, stopping_s=stopping)
    assert lives_of(["old"], [(up - 40.0, up + 1.0)], events) == [Life(replica="old"), new]
    other = [replace(e, replica="old") if e.kind == "stopped" else e for e in events]
    old, kept = lives_of(["old"], [(up - 40.0, up + 1.0)], other)
    assert (old.stopping_s, kept.stopping_s) == (stopping, None)
    assert lives_of(["old"], [], []) == [Life(replica="old")]


# ---- a run


def row(start, *, replica="a", output=5, ttft_s=0.2, tpot_s=0.05):
    begin = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=start)
    return SimpleNamespace(
        start=begin, end=begin + timedelta(seconds=1), replica=replica, prompt_tokens=40,
        cached_tokens=0, output_tokens=output, ttft_s=ttft_s, tpot_s=tpot_s,
    )  # fmt: skip


def result(sent, failed=0):
    def record(at, error=None):
        return SimpleNamespace(
            completed=error is None, sent_s=at, scheduled_s=at - 0.002, ttft_s=0.3, tpot_s=0.06
        )

    records = [record(at) for at in sent] + [record(9.0, "timeout")] * failed
    sample = SimpleNamespace(time_s=0.5, joules={"meter": 7.0}, num_replicas=1)
    unknown = SimpleNamespace(time_s=1.5, joules={"meter": None}, num_replicas=1)
    return SimpleNamespace(
        records=records,
        facts=SimpleNamespace(started_at="2026-01-01T00:00:00+00:00"),
        fleet_samples=[sample, unknown],
    )


def test_a_run_lies_on_the_clients_clock_by_the_median_way():
    """Ways of 30, 30 and 50 ms: the client began 30 ms before what the rows say of the first."""
    began = 100.0
    rows = [row(began + at + way) for at, way in ((1.0, 0.03), (2.0, 0.03), (3.0, 0.05))]
    zero_s = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + began
    lives = [Life(replica="a"), Life(replica="b", asked_s=zero_s + 1.0, ready_s=zero_s + 2.0)]
    run = observed("steady", 2, result([1.0, 2.0, 3.0], failed=1), reversed(rows), lives)
    assert [r.arrival_s for r in run.requests] == pytest.approx([1.0, 2.0, 3.02], abs=1e-5)
    assert run.end_s == pytest.approx(4.02, abs=1e-5)
    assert (run.arrived, run.completed) == (4, 3)
    assert run.lives[0] == Life(replica="a")
    assert run.lives[1].asked_s == pytest.approx(0.97, abs=1e-5)
    assert run.books == (Books(time_s=0.5, joules=7.0, num_replicas=1),)
    assert run.schedule_lag_p99_s == pytest.approx(0.002)
    assert Observed.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_request_without_a_row_is_not_passed_over():
    with pytest.raises(EngineError, match="2 requests completed, 1 recorded"):
        observed("steady", 1, result([1.0, 2.0]), [row(1.0), row(2.0, output=0)], [])


def test_the_joules_of_a_start_are_the_jump_less_what_the_others_drew(run):
    """4 W of one replica; in the second in which the new one tells of its 150 J, 4 more."""
    books = [Books(time_s=float(t), joules=4.0 * t, num_replicas=1) for t in range(20)]
    books += [Books(time_s=20.0, joules=4.0 * 20 + 150.0, num_replicas=2)]
    assert start_joules(run(books=tuple(books))) == pytest.approx(150.0)
    assert start_joules(run()) is None


# ---- figures


def test_measured_figures_by_hand(run):
    figures = measured_figures(run())
    assert figures.ttft_p50_s == pytest.approx(0.104)  # the fifth of ten
    assert figures.ttft_p99_s == pytest.approx(0.109)  # the last
    assert figures.tpot_p50_s == figures.tpot_p99_s == 0.05
    assert figures.tokens_per_s == pytest.approx(110 / 9.6)
    assert figures.joules_per_request == pytest.approx(4.0 * 9.6 / 10)
    assert client_figures(run()).ttft_p99_s == 0.2
    assert client_figures(run()).joules_per_request is None


def test_simulated_figures_leave_out_the_tpot_of_one_token(run):
    played = Played(
        ttft_s=np.linspace(0.1, 1.0, 10), tpot_s=np.array([math.nan, *[0.07] * 9]),
        end_s=np.arange(1.0, 11.0), replica=np.zeros(10, dtype=np.int64), joules_at=np.empty(0),
        joules=50.0, preemptions=0,
    )  # fmt: skip
    figures = simulated_figures(run(), played)
    assert figures.ttft_p50_s == pytest.approx(0.5)
    assert figures.tpot_p99_s == pytest.approx(0.07)
    assert figures.tokens_per_s == pytest.approx(110 / 10.0)
    assert figures.joules_per_request == pytest.approx(5.0)


def test_errors_are_relative_to_what_was_measured():
    measured = Figures(ttft_p50_s=0.2, ttft_p99_s=1.0, tpot_p50_s=0.05, tpot_p99_s=None)
    simulated = replace(measured, ttft_p50_s=0.18, ttft_p99_s=1.3, tpot_p99_s=0.1)
    found = errors(simulated, measured)
    assert found["ttft_p50_s"] == pytest.approx(-0.1)
    assert found["ttft_p99_s"] == pytest.approx(0.3)
    assert found["tpot_p99_s"] is None
    assert worst(found) is None  # one is not known
    assert worst({"a": -0.3, "b": 0.2}) == 0.3


def test_a_median_over_runs_is_not_known_where_one_run_is_not():
    one = Figures(ttft_p50_s=1.0, ttft_p99_s=1.0, tpot_p50_s=1.0, tpot_p99_s=None)
    two = replace(one, ttft_p50_s=2.0, tpot_p99_s=3.0)
    three = replace(one, ttft_p50_s=7.0)
    found = median_figures([one, three, two])
    assert found.ttft_p50_s == 2.0
    assert found.tpot_p99_s is None
    assert median_figures([]).ttft_p50_s is None


# ---- which runs count

QUIET = Conditions(yardstick_before_s=0.04, yardstick_after_s=0.041, read_s=(6e-4,) * 20)


@pytest.mark.parametrize(
    ("changes", "more", "why"),
    [
        ({}, {}, None),
        ({"foreign_cores": 0.3}, {}, "other processes used 0.30 cores"),
        ({"yardstick_after_s": 0.06}, {}, None),  # the simulator is told of slow spells
        ({"read_s": (6e-4,) * 10 + (7e-4,) * 10}, {}, None),
        ({"read_s": (9e-4,) * 20}, {}, "the machine took 1.50 of its quick time"),
        ({}, {"completed": 9}, "1 requests failed"),
        ({}, {"schedule_lag_p99_s": 0.4}, None),
        ({}, {"schedule_lag_p99_s": 1.4}, "sent up to 1.40 s late"),
    ],
)
def test_a_run_counts_unless_the_machine_disturbed_it(run, changes, more, why):
    disturbed = run(conditions=replace(QUIET, **changes), **more)
    first, last = disturbances([run(conditions=QUIET), disturbed])
    assert first == ()
    assert (not last) if why is None else (len(last) == 1 and why in last[0])


def test_a_prompt_from_the_prefix_cache_is_another_load(run):
    first, *rest = run().requests
    (why,) = disturbances([run(requests=(replace(first, cached_tokens=32), *rest))])[0]
    assert why.startswith("1 prompts were in the prefix cache")


def test_slowness_is_the_median_of_half_a_minute_against_the_quickest_of_all_runs(run):
    spells = (6e-4,) * 6 + (9e-4,) + (6e-4,) * 5 + (9e-4,) * 8  # one window, then 48 s
    slow, quick, unknown = slowness_of(
        [run(conditions=replace(QUIET, read_s=spells)), run(conditions=QUIET), run()]
    )
    assert slow == pytest.approx([1.0] * 12 + [1.5] * 8)
    assert quick == pytest.approx([1.0] * 20)
    assert (unknown, mean_slowness(unknown)) == ((), 1.0)


def test_what_two_replicas_do_to_the_memory_is_not_taken_for_a_slow_machine(run):
    """Slow from 12 s to 36 s: that counts unless the replicas were two."""
    slow = replace(QUIET, read_s=(6e-4,) * 2 + (9e-4,) * 4 + (6e-4,) * 4)
    two = (Life(replica="a"), Life(replica="b", asked_s=12.0, ready_s=20.0, stopping_s=31.0))
    one_run, two_run = slowness_of([run(conditions=slow), run(conditions=slow, lives=two)])
    assert max(one_run) == pytest.approx(1.5)
    assert two_run == pytest.approx([1.0] * 10)


def test_the_next_load_is_the_one_with_the_fewest_runs_that_count(run):
    loads = [calibration(), *held_out()]

    def after(*names, slow=()):
        runs = [
            run(name, conditions=replace(QUIET, foreign_cores=0.5 * (at in slow)))
            for at, name in enumerate(names)
        ]
        found = next_load(runs, loads, rounds=2)
        return found and found.name

    assert after() == "calibration"
    assert after("calibration") == "steady"
    assert after("calibration", "steady", "burst", "scale") == "steady"
    every = ("calibration", *("steady", "burst", "scale") * 2)
    assert after(*every) is None
    assert after(*every, slow=(2,)) == "burst"
    assert after("calibration", slow=(0,)) == "steady"  # tried less often
    assert after("calibration", "steady", "burst", "scale", slow=(0,)) == "calibration"


# ---- loads, pulse


def test_the_held_out_loads_share_nothing_with_the_calibration():
    loads = {load.name: load for load in (calibration(), *held_out())}
    assert list(loads) == ["calibration", "steady", "burst", "scale"]
    assert [count for _, count in loads["scale"].replicas] == [1, 2, 1]
    assert [load.max_replicas for load in loads.values()] == [2, 1, 1, 2]
    assert len({load.rows[:3] for load in loads.values()}) == 4
    for load in loads.values():
        assert load.rows[-1].arrival_s <= load.duration_s
        assert len(load.rows) / load.duration_s < 2.0  # two cores serve it
        assert all(
            50 <= row.prompt_tokens <= 240 or load.name == "calibration" for row in load.rows
        )
    with pytest.raises(ConfigError, match="scale"):
        held_out(0.0)


def test_the_pulse_times_cpu_not_waiting():
    called = []
    with Pulse(period_s=0.01, also=lambda: called.append(1)) as pulse:
        while len(pulse.samples) < 8 or not called:
            pass  # this thread takes all the time it gets
    assert all(0.0 < read_s < 0.1 and compute_s < 0.1 for _, read_s, compute_s in pulse.samples)


def test_a_window_shows_its_quick_end_and_a_short_rest_is_left_out():
    samples = [1.0, 2.0, 3.0, 4.0, 5.0] * 2 + [9.0]
    assert windows_s(samples, period_s=1.2) == pytest.approx([1.8, 1.8])
    assert windows_s(samples[:8], period_s=1.2) == pytest.approx([1.8, 1.4])
