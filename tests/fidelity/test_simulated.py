"""The play of a run: as `simulate` has it, with what a host does, and calibrated on itself."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from policies.core.errors import ConfigError
from policies.core.types import Bounds, ControlSettings
from policies.sim.arrivals import LengthCdf, Lengths, poisson
from policies.sim.fleet import simulate
from policies.sim.outcome import SimSettings
from policies.static import Static
from serve_app.fidelity.__main__ import main
from serve_app.fidelity.calibrate import calibrate
from serve_app.fidelity.host import Beside, HostEffects, Ratios
from serve_app.fidelity.observed import Books, Conditions, Served
from serve_app.fidelity.outcome import Session, compare
from serve_app.fidelity.simulated import Life, play
from serve_app.sections import read_section

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
LENGTHS = Lengths(prompt=LengthCdf.uniform(30, 200), output=LengthCdf.uniform(20, 80))
ONE = (Life(replica="a"),)
PLANTED = HostEffects(
    ratios={
        Beside.NOTHING: Ratios(step_time=1.1, step_energy=0.9),
        Beside.BUSY_REPLICA: Ratios(step_time=1.6, step_energy=0.7),
        Beside.START: Ratios(step_time=1.4, step_energy=0.8),
    },
    request_overhead_s=0.02,
    idle_watts=1.2,
    start_watts=3.0,
)


def arrivals(rate, seconds, seed=1):
    rows = poisson(rate, seconds, LENGTHS, seed=seed)
    return [(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in rows]


def test_one_replica_plays_as_the_simulator_plays_it(profile, sizes):
    rows = poisson(0.9, 120.0, LENGTHS, seed=3)
    control = ControlSettings(bounds=Bounds(max_replicas=1, max_num_seqs=64))
    told = simulate(
        rows,
        profile,
        Static(),
        SimSettings(
            control=control,
            kv_capacity_tokens=sizes.kv_capacity_tokens,
            max_num_batched_tokens=sizes.max_num_batched_tokens,
        ),
    )
    played = play(
        [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in rows], ONE, profile, sizes,
        HostEffects(),
    )  # fmt: skip
    assert played.ttft_s.mean() == pytest.approx(told.ttft.mean, rel=1e-6)
    assert played.tpot_s.mean() == pytest.approx(told.tpot.mean, rel=1e-6)
    after_s = told.duration_s - float(played.end_s.max())  # it goes on to the end of a tick
    assert played.joules + 1.5 * after_s == pytest.approx(told.joules, rel=1e-6)


def test_one_request_by_hand(profile, sizes):
    """100 prompt tokens in a step of n 1, kv 100, prefill 100; then decode steps of kv 100, 101."""
    effects = replace(HostEffects(), request_overhead_s=0.05)
    played = play([(2.0, 100, 3)], ONE, profile, sizes, effects, moments_s=(1.0, 2.0, 99.0))
    prefill_s = 0.030 + 1e-3 + 4e-6 * 100 + 1e-3 * 100
    decode_s = 2 * (0.030 + 1e-3) + 4e-6 * (100 + 101)
    prefill_j = 0.25 + 0.01 + 3e-5 * 100 + 8e-3 * 100
    decode_j = 2 * (0.25 + 0.01) + 3e-5 * (100 + 101)
    assert played.ttft_s[0] == pytest.approx(prefill_s + 0.05, rel=1e-6)
    assert played.tpot_s[0] == pytest.approx(decode_s / 2, rel=1e-6)
    assert played.end_s[0] == pytest.approx(2.0 + prefill_s + decode_s, rel=1e-6)
    assert played.joules == pytest.approx(1.5 * 2.0 + prefill_j + decode_j, rel=1e-6)
    assert played.joules_at == pytest.approx([1.5, 3.0, played.joules], rel=1e-6)


def test_a_busy_neighbour_makes_steps_longer_and_an_idle_one_does_not(profile, sizes):
    two = (Life(replica="a"), Life(replica="b"))
    slow = HostEffects(
        ratios={b: Ratios() for b in Beside} | {Beside.BUSY_REPLICA: Ratios(step_time=2.0)}
    )
    apart = [(0.0, 50, 20), (10.0, 50, 20)]
    together = [(0.0, 50, 20), (0.0, 50, 20)]
    alone_s = play(apart, two, profile, sizes, slow).tpot_s
    assert alone_s == pytest.approx(play(apart, two, profile, sizes, HostEffects()).tpot_s)
    both_s = play(together, two, profile, sizes, slow).tpot_s
    assert both_s == pytest.approx(2.0 * alone_s, rel=0.04)  # the last steps of one are alone
    assert play(together, two, profile, sizes, slow).replica.tolist() == [0, 1]


def test_a_start_slows_draws_and_then_serves_and_a_drain_loses_nothing(profile, sizes):
    lives = (Life(replica="a"), Life(replica="b", asked_s=20.0, ready_s=50.0, stopping_s=80.0))
    effects = HostEffects(
        ratios={b: Ratios() for b in Beside} | {Beside.START: Ratios(step_time=1.5)},
        start_watts=7.0,
    )
    asked = arrivals(0.8, 100.0)
    played = play(asked, lives, profile, sizes, effects, moments_s=(20.0, 50.0))
    plain = play(
        asked, lives, profile, sizes, replace(effects, start_watts=0.0), moments_s=(20.0, 50.0)
    )
    at = np.array([arrival_s for arrival_s, _, _ in asked])
    on_b = played.replica == 1
    assert on_b.any()
    assert at[on_b].min() >= 50.0
    assert at[on_b].max() < 80.0
    assert len(played.end_s) == len(asked)
    assert played.joules - plain.joules == pytest.approx(7.0 * 30.0)
    steady = play(asked, lives, profile, sizes, HostEffects())
    inside = (at >= 20.0) & (played.end_s <= 50.0)
    assert np.median(played.tpot_s[inside] / steady.tpot_s[inside]) == pytest.approx(1.5, rel=0.1)
    before = played.end_s <= 20.0
    assert played.tpot_s[before] == pytest.approx(steady.tpot_s[before])


def test_a_slow_machine_takes_longer_for_its_steps_and_only_while_it_is_slow(profile, sizes):
    asked = [(0.0, 50, 20), (30.0, 50, 20), (90.0, 50, 20)]
    plain = play(asked, ONE, profile, sizes, HostEffects())
    slow = play(asked, ONE, profile, sizes, HostEffects(), slowness=[1.0] * 4 + [1.25] * 4 + [1.5])
    assert slow.tpot_s / plain.tpot_s == pytest.approx([1.0, 1.25, 1.5], rel=0.005)  # levels of 1 %
    assert slow.ttft_s / plain.ttft_s == pytest.approx([1.0, 1.25, 1.5], rel=0.005)
    one = play(asked[:1], ONE, profile, sizes, HostEffects(), slowness=[1.5])
    alone = play(asked[:1], ONE, profile, sizes, HostEffects())
    assert one.joules == pytest.approx(1.5 * alone.joules, rel=0.005)


def test_what_cannot_be_played_is_refused(profile, sizes):
    with pytest.raises(ConfigError, match="in the order"):
        play([(1.0, 10, 5), (0.5, 10, 5)], ONE, profile, sizes, HostEffects())
    gone = (Life(replica="a", stopping_s=1.0),)
    with pytest.raises(ConfigError, match="no replica"):
        play([(0.0, 10, 5), (5.0, 10, 5)], gone, profile, sizes, HostEffects())


def as_measured(run, load, asked, lives, profile, sizes, number=1, slowness=()):
    """A run as the planted host would have given it: its books jump when a start has told."""
    end_s = max(a for a, _, _ in asked) + 30.0
    moments = np.arange(0.0, end_s, 1.0)
    played = play(asked, lives, profile, sizes, PLANTED, moments_s=moments, slowness=slowness)
    silent = np.zeros(len(moments))
    counts = np.ones(len(moments), dtype=int)
    for life in lives:
        if life.asked_s is not None:
            untold = (moments >= life.asked_s) & (moments < life.ready_s)
            silent[untold] = PLANTED.start_watts * (moments[untold] - life.asked_s)
            counts[(moments >= life.ready_s) & (moments < (life.stopping_s or end_s))] = 2
    return run(
        load,
        number=number,
        requests=tuple(
            Served(
                arrival_s=a, end_s=float(e), replica=lives[int(r)].replica, prompt_tokens=p,
                cached_tokens=0, output_tokens=o, ttft_s=float(t), tpot_s=float(d),
            )
            for (a, p, o), t, d, e, r in zip(
                asked, played.ttft_s, played.tpot_s, played.end_s, played.replica, strict=True
            )
        ),
        lives=lives,
        books=tuple(
            Books(time_s=float(t), joules=float(j - s), num_replicas=int(n))
            for t, j, s, n in zip(moments, played.joules_at, silent, counts, strict=True)
        ),
        arrived=len(asked),
        completed=len(asked),
        conditions=Conditions(read_s=tuple(6e-4 * one for one in slowness)),
    )  # fmt: skip


LIVES = (Life(replica="a"), Life(replica="b", asked_s=90.0, ready_s=150.0, stopping_s=240.0))


def test_planted_constants_of_a_host_are_found_again(run, profile, sizes):
    measured = as_measured(run, "calibration", arrivals(0.9, 300.0, 5), LIVES, profile, sizes)
    found = calibrate(measured, profile, sizes, idle_watts=1.2)
    assert found.start_watts == pytest.approx(3.0, rel=0.05)
    assert found.request_overhead_s == pytest.approx(0.02, abs=0.005)
    for beside in Beside:
        true, told = PLANTED.ratios[beside], found.ratios[beside]
        assert told.step_time == pytest.approx(true.step_time, rel=0.03), beside
        assert told.step_energy == pytest.approx(true.step_energy, rel=0.08), beside


def test_a_calibration_without_a_state_is_refused(run, profile, sizes):
    with pytest.raises(ConfigError, match="one replica that starts"):
        calibrate(run("calibration"), profile, sizes)
    few = as_measured(run, "calibration", arrivals(0.01, 400.0), LIVES, profile, sizes)
    with pytest.raises(ConfigError, match="fewer than 5 requests"):
        calibrate(few, profile, sizes)


@pytest.fixture
def session(run, profile, sizes):
    calibrated = as_measured(run, "calibration", arrivals(0.9, 300.0, 5), LIVES, profile, sizes)
    steady = as_measured(run, "steady", arrivals(0.8, 180.0, 11), ONE, profile, sizes)
    failed = replace(steady, round=2, completed=3)
    scale = as_measured(run, "scale", arrivals(0.7, 300.0, 12), LIVES, profile, sizes)
    return Session(runs=(calibrated, steady, failed, scale), sizes=sizes, idle_watts=1.2)


def test_held_out_loads_are_met_with_the_constants_and_not_without(session, profile):
    outcome = compare(session, profile)
    steady, scale = outcome.loads
    assert (steady.counted, steady.runs) == (1, 2)
    assert steady.verdict == "within 10%"
    assert scale.verdict == "within 10%"
    assert steady.plain_errors["tpot_p50_s"] < -0.08  # the planted host takes 1.1 of the time
    assert [bool(one.reasons) for one in outcome.compared] == [False, True, False]
    with pytest.raises(ConfigError, match="calibration"):
        compare(replace(session, runs=session.runs[1:]), profile)


def test_slow_spells_of_the_machine_are_told_from_the_replica(run, profile, sizes):
    """Quick for the calibration, then slow for half of a load: met, and with the same constants."""
    quick, spells = (1.0,) * 60, (1.0,) * 15 + (1.3,) * 25
    calibrated = as_measured(
        run, "calibration", arrivals(0.9, 300.0, 5), LIVES, profile, sizes, slowness=quick
    )
    steady = as_measured(
        run, "steady", arrivals(0.8, 180.0, 11), ONE, profile, sizes, slowness=spells
    )
    session = Session(runs=(calibrated, steady), sizes=sizes, idle_watts=1.2)
    outcome = compare(session, profile)
    assert outcome.loads[0].verdict == "within 10%"
    assert outcome.compared[0].slowness == pytest.approx(1.19, abs=0.02)
    assert outcome.effects.ratios[Beside.NOTHING].step_time == pytest.approx(1.1, rel=0.03)
    silent = replace(session, runs=(calibrated, replace(steady, conditions=Conditions())))
    assert compare(silent, profile).loads[0].errors["tpot_p50_s"] < -0.1
    assert outcome.apart("steady", "tpot_p50_s") is None
    faster = as_measured(
        run, "steady", arrivals(0.8, 180.0, 11), ONE, profile, sizes, slowness=quick
    )
    both = compare(replace(session, runs=(calibrated, steady, faster)), profile)
    slow_s, fast_s = (one.measured.tpot_p50_s for one in both.compared)
    assert slow_s / fast_s > 1.05
    assert both.apart("steady", "tpot_p50_s") == pytest.approx(slow_s / fast_s - 1.0)


def test_the_same_comparison_again_from_its_file(session, tmp_path):
    """The whole of the command but the measuring, with the shipped profile."""
    (tmp_path / "runs.json").write_text(json.dumps(session.to_dict()))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- fidelity:begin -->\n<!-- fidelity:end -->\nafter\n")
    assert main(["--out", str(tmp_path), "--again", "--readme", str(readme)]) in {0, 1}
    assert "| scale | " in read_section(readme, "fidelity")
    page = (tmp_path / "report.md").read_text()
    for words in ("**steady**", "**scale**", "requests failed", "| beside |", "smollm2"):
        assert words in page
    told = json.loads((tmp_path / "report.json").read_text())
    assert [load["name"] for load in told["loads"]] == ["steady", "scale"]
    assert told["runs"][0]["errors"].keys() == told["runs"][0]["measured"].keys()
    assert (tmp_path / "cdfs.png").stat().st_size > 10_000
    assert main(["--out", str(tmp_path / "none"), "--again"]) == 2
