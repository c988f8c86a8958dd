"""The whole way once, short: a real deployment, a load, its play. Wide limits: the machine may be
busy; `make fidelity` is the measurement."""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.compare.configs import read_base
from serve_app.deciders import load_profile
from serve_app.fidelity.figures import errors, measured_figures, simulated_figures
from serve_app.fidelity.host import HostEffects
from serve_app.fidelity.loads import held_out
from serve_app.fidelity.run import Rig
from serve_app.fidelity.service import Fleet
from serve_app.fidelity.simulated import play
from serve_app.repository import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(480)]
PREPARE = [Path(sys.executable).parent / "jouleserve", "model", "prepare", "smollm2-135m-instruct"]


def test_a_short_load_is_measured_and_simulated_alike(tmp_path: Path):
    subprocess.run(PREPARE, check=True, timeout=170)  # where it is there, it is only looked at
    load = held_out()[0]
    load = replace(load, rows=load.rows[:8], duration_s=load.rows[8].arrival_s)
    profile = load_profile("smollm2-135m-instruct@cpu")
    with Fleet(read_base(REPOSITORY / "serve_config.yaml"), tmp_path) as fleet:
        fleet.wait_ready(print)
        rig = Rig(fleet, tmp_path, print)
        run, sizes = rig.measure(load), rig.sizes
    assert sizes.max_num_seqs == 64
    assert sizes.kv_capacity_tokens > 10_000
    assert (run.arrived, run.completed) == (8, 8)
    assert [r.output_tokens for r in run.requests] == [row.output_tokens for row in load.rows]
    gaps = [r.arrival_s - row.arrival_s for r, row in zip(run.requests, load.rows, strict=True)]
    # Sent when planned. A request or two may wait for a core that something else holds; a load
    # sent at another pace would be late by seconds, and more with each request.
    late_s = sorted(gap - min(gaps) for gap in gaps)
    assert statistics.median(late_s) < 0.25, late_s
    assert late_s[-1] < 2.0, late_s
    assert run.conditions.yardstick_before_s
    (life,) = run.lives
    assert {r.replica for r in run.requests} == {life.replica}
    played = play(run.arrivals, run.lives, profile, sizes, HostEffects())
    found = errors(simulated_figures(run, played), measured_figures(run))
    for name, error in found.items():
        assert error is not None, name
        assert -0.75 < error < 1.5, (name, found)
