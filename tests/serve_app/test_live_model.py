"""A replica's model beside its own steps: what is learned, from which joules, and what survives."""

import asyncio
import logging
import time
from dataclasses import replace

import pytest

from policies.core.attribution import StepShare
from policies.core.types import Reason
from policies.core.window import Window
from policies.model.drift import Verdict
from policies.model.fitted import FittedModel
from policies.model.online import Correction
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.batch_cap import BatchCap
from serve_app.control_loop import ControlLoop, Replica
from serve_app.deciders import load_profile, policy_for
from serve_app.engine.step_link import StepEvent
from serve_app.engine.tap import EngineState
from serve_app.ledger import LedgerState
from serve_app.live_model import LiveModel
from serve_app.meter_windows import WindowReader
from serve_app.meters import Device, DeviceKind, DeviceReading, EnergyMeter, Source
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder
from serve_app.observers.step_residual import StepResidual
from serve_app.push import Push
from serve_app.settings import LiveSettings, ModelCorrectionSettings, parse_energy

MODEL = load_profile("tests/data/planted_cpu_profile.yaml")
BATCH = tuple(
    StepShare(request_id=f"r{i}", prefill_tokens=0, decode_tokens=1, context_tokens=100)
    for i in range(4)
)
STEP_S = MODEL.latency.step_time_s(4, 400, 0)
IDLE_WATTS = MODEL.power.idle_watts
STEP_JOULES = MODEL.power.step_joules(4, 400, 0)
LABELS = {"application": "llm", "deployment": "d", "replica": "r", "model": "m"}


class Sensor:
    """One device with a counter that the test moves."""

    def __init__(self, kind=DeviceKind.GPU, source=Source.COUNTER, caveat=None):
        self.name = f"sensor {kind.value}"
        self.device = Device(id=f"{kind.value}-0", kind=kind, name="test")
        self.source, self.caveat = source, caveat
        self.joules, self.anomalies, self.lost = 0.0, 0, False

    def devices(self):
        return (self.device,)

    def read(self, now_s):
        return (
            DeviceReading(
                device=self.device,
                joules=None if self.lost else self.joules,
                source=Source.UNAVAILABLE if self.lost else self.source,
                reason="lost" if self.lost else None,
                anomalies=self.anomalies,
                caveat=self.caveat,
            ),
        )

    def idle_watts(self):
        return None

    def close(self):
        pass


class Engine:
    """An engine at work in front of sensors, on a clock of its own; ticks once a second."""

    def __init__(self, *sensors, **settings):
        self.now_s = 100.0
        self.sensors = sensors or (Sensor(),)
        self.meter = EnergyMeter(list(self.sensors), clock=lambda: self.now_s)
        self.windows = WindowReader(self.meter, self.now_s)
        self.live = LiveModel(MODEL, ModelCorrectionSettings(**settings))

    def run(self, seconds, time_ratio=1.0, energy_ratio=1.0, busy_ratio=1.0, idle_watts=IDLE_WATTS):
        """Decode steps of one batch for a part of each second; the idle draw for the rest."""
        step_s, sensor = time_ratio * STEP_S, self.sensors[0]
        for _ in range(seconds):
            end_s, steps = self.now_s + 1.0, int(busy_ratio / step_s)
            for _ in range(steps):
                self.live.on_step(StepEvent(kind="b", time_s=self.now_s, shares=BATCH))
                self.now_s += step_s
                self.live.on_step(StepEvent(kind="e", time_s=self.now_s))
            idle_s, self.now_s = end_s - self.now_s, end_s
            sensor.joules += energy_ratio * steps * STEP_JOULES + idle_watts * idle_s
            self.windows.next()
            self.live.tick(self.windows, self.now_s)
        return self

    @property
    def learned(self):
        found = self.live.correction
        return found.step_time_ratio, found.energy_ratio


# --- what is learned ----------------------------------------------------------------------------


def test_step_time_and_measured_energy_are_found():
    time_ratio, energy_ratio = Engine().run(120, time_ratio=1.3, energy_ratio=0.8).learned
    assert time_ratio == pytest.approx(1.3, rel=0.02)
    assert energy_ratio == pytest.approx(0.8, rel=0.02)


def test_a_machine_that_fits_its_profile_is_not_corrected():
    engine = Engine().run(120)
    assert engine.learned == (1.0, 1.0)
    assert engine.live.correction.note == ""
    assert engine.live.assess(engine.now_s).verdict is Verdict.FITS


def test_estimated_joules_teach_nothing():
    sensor = Sensor(DeviceKind.CPU, Source.ESTIMATED)
    assert Engine(sensor).run(120, 1.3, 0.5).learned == (pytest.approx(1.3, rel=0.02), None)


def test_integrated_joules_do_teach():
    assert Engine(Sensor(source=Source.INTEGRATED)).run(120, 1.0, 0.8).learned[1] < 0.85


def test_where_there_is_a_gpu_the_energy_is_the_gpus():
    gpu, cpu = Sensor(), Sensor(DeviceKind.CPU, Source.ESTIMATED)
    assert Engine(gpu, cpu).run(120, 1.0, 0.8).learned[1] == pytest.approx(0.8, rel=0.02)
    cpu = Sensor(DeviceKind.CPU)
    assert Engine(cpu).run(120, 1.0, 0.8).learned[1] == pytest.approx(0.8, rel=0.02)


def test_joules_that_are_not_all_of_the_replicas_teach_nothing():
    shared = Engine(Sensor(caveat="shared with 2 processes")).run(120)
    elsewhere = Engine(Sensor(DeviceKind.CPU))
    elsewhere.meter.unavailable["gpu"] = "2 of this replica's GPUs on other nodes are not metered"
    lost = Engine(Sensor(), Sensor(DeviceKind.CPU))
    lost.sensors[0].lost = True
    for engine in (shared, elsewhere.run(120), lost.run(120)):
        assert engine.learned == (1.0, None)


def test_a_faulty_reading_costs_its_window_only():
    engine = Engine().run(120)
    for _ in range(20):
        engine.sensors[0].anomalies += 1
        engine.sensors[0].joules += 1e6
        engine.run(7)
    assert engine.learned == (1.0, 1.0)
    assert engine.live.state.energy.gated == 0


def test_the_idle_draw_between_steps_is_no_bias():
    energy_ratio = Engine().run(200, energy_ratio=1.2, busy_ratio=0.7).learned[1]
    assert energy_ratio == pytest.approx(1.2, rel=0.02)


def test_a_mostly_idle_replica_learns_its_step_time_and_no_energy():
    engine = Engine().run(200, time_ratio=1.2, energy_ratio=3.0, busy_ratio=0.2)
    assert engine.learned == (pytest.approx(1.2, rel=0.02), None)
    assert Engine().run(60, busy_ratio=0.0).learned == (None, None)


def test_switched_off_it_learns_nothing_and_still_tells_the_residual():
    engine = Engine(enabled=False).run(120, 1.3)
    assert engine.live.correction is None
    assert engine.live.assess(engine.now_s) is None
    assert engine.live.kept() is None
    assert engine.live.residual_ratio == pytest.approx(0.3)


def test_the_bound_is_a_setting():
    found = Engine(max_ratio=1.2).run(120, 1.5).live.correction
    assert (found.step_time_ratio, found.at_bound) == (1.2, True)


def test_overlapping_steps_count_from_the_end_of_the_one_before_and_prompts_are_modelled():
    model = FittedModel.from_dict(
        MODEL.to_dict() | {"latency": MODEL.to_dict()["latency"] | {"q_s_per_attended_pair": 1e-6}}
    )
    steps = StepResidual(model)
    prompt = StepShare(request_id="p", prefill_tokens=100, decode_tokens=0, context_tokens=300)
    steps.on_step(StepEvent(kind="b", time_s=10.0, shares=BATCH))
    steps.on_step(StepEvent(kind="b", time_s=10.1, shares=(*BATCH, prompt)))
    steps.on_step(StepEvent(kind="e", time_s=10.5))
    steps.on_step(StepEvent(kind="e", time_s=10.8))
    pairs = (300**2 - 200**2) / 2
    sums = steps.take()
    assert sums.measured_s == pytest.approx(0.8)
    assert sums.modelled_s == pytest.approx(
        model.latency.step_time_s(4, 400, 0) + model.latency.step_time_s(5, 700, 100, pairs)
    )
    assert sums.modelled_joules == pytest.approx(
        model.power.step_joules(4, 400, 0) + model.power.step_joules(5, 700, 100, pairs)
    )
    assert steps.take().residual_ratio is None


H100 = load_profile("llama-3.1-8b-instruct@h100")


def one_step(limit_watts, seconds=0.1):
    """The sums after one step of BATCH under this limit."""
    steps = StepResidual(H100)
    steps.under(limit_watts)
    steps.on_step(StepEvent(kind="b", time_s=10.0, shares=BATCH))
    steps.on_step(StepEvent(kind="e", time_s=10.0 + seconds))
    return steps.take()


def test_steps_under_a_power_limit_are_compared_with_the_model_under_it():
    free, capped = one_step(None), one_step(250.0)
    assert capped.modelled_s == pytest.approx(
        H100.latency_under(250.0).step_time_s(4, 400, 0), rel=1e-9
    )
    assert capped.modelled_s > 1.05 * free.modelled_s
    draw = capped.modelled_joules / capped.modelled_s
    assert draw == pytest.approx(min(250.0, free.modelled_joules / free.modelled_s))
    assert one_step(2000.0) == free  # inert


def test_steps_under_a_limit_of_unknown_effect_teach_nothing():
    steps = StepResidual(MODEL)
    steps.under(250.0)
    steps.on_step(StepEvent(kind="b", time_s=10.0, shares=BATCH))
    steps.on_step(StepEvent(kind="e", time_s=10.2))
    assert steps.take().residual_ratio is None
    steps.under(None)
    steps.on_step(StepEvent(kind="b", time_s=11.0, shares=BATCH))
    steps.on_step(StepEvent(kind="e", time_s=11.0 + STEP_S))
    assert steps.take().residual_ratio == pytest.approx(0.0, abs=1e-9)


# --- what survives a restart --------------------------------------------------------------------


def push(live, replica="r1"):
    return Push(
        deployment="d", replica=replica, model="m", families=[], books={}, knobs={},
        learned=live.kept(),
    )  # fmt: skip


def asking(ledger, deployment="d"):
    async def ask(profile):
        return ledger.learned(deployment, profile)

    return ask


def restarted(ask, model=MODEL):
    live = LiveModel(model, ModelCorrectionSettings())
    asyncio.run(live.resume(ask))
    return live


def test_a_restarted_replica_goes_on_with_what_the_ledger_kept():
    ledger, engine = LedgerState(), Engine().run(120, 1.3, 0.8)
    ledger.push(push(engine.live), 0.0)
    again = restarted(asking(ledger))
    assert again.correction == engine.live.correction
    engine.live = again
    assert engine.run(60, 1.0, 1.0).learned == (
        pytest.approx(1.0, rel=0.03),
        pytest.approx(1.0, rel=0.06),
    )


def test_the_ledger_keeps_the_last_state_and_no_newcomer_takes_it_away():
    ledger, first, second = LedgerState(), Engine().run(120, 1.3), Engine().run(120, 1.1)
    ledger.push(push(first.live), 0.0)
    ledger.push(push(second.live, "r2"), 1.0)
    ledger.push(push(Engine().live, "r3"), 2.0)  # has seen no step yet
    assert restarted(asking(ledger)).correction == second.live.correction


def test_a_lost_ledger_another_deployment_or_another_profile_start_uncorrected():
    ledger, engine = LedgerState(), Engine().run(120, 1.3)
    ledger.push(push(engine.live), 0.0)
    other = replace(MODEL, latency=replace(MODEL.latency, t0_s=0.02))
    assert restarted(asking(LedgerState())).correction == Correction()
    assert restarted(asking(ledger, "e")).correction == Correction()
    assert restarted(asking(ledger), other).correction == Correction()


def test_the_ledger_keeps_a_bounded_number_of_profiles():
    ledger, kept = LedgerState(), Engine().run(30, 1.3).live.kept()
    for i in range(200):
        one = push(Engine().live)
        ledger.push(replace(one, learned=kept | {"profile": f"p{i}"}), float(i))
    assert sum(ledger.learned("d", f"p{i}") is not None for i in range(200)) == 64
    assert ledger.learned("d", "p199") is not None


@pytest.mark.parametrize(
    "answer", [{"profile": "x"}, [1], "text", {"step_time": {"ratio": -1}}, RuntimeError("gone")]
)
def test_a_ledger_that_fails_or_answers_nonsense_is_harmless_and_said_once(answer, caplog):
    async def ask(_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    with caplog.at_level(logging.WARNING, logger="ray.serve"):
        assert restarted(ask).correction == Correction()
    (record,) = caplog.records
    assert record.getMessage().startswith("the model starts uncorrected: ")


def test_a_state_from_another_profile_is_never_used_even_if_it_is_handed_in(caplog):
    kept = Engine().run(120, 1.3).live.kept() | {"profile": "0123456789abcdef"}

    async def ask(_):
        return kept

    assert restarted(ask).correction == Correction()
    assert "profile is 0123456789abcdef; allowed: " in caplog.text


# --- the tick -----------------------------------------------------------------------------------


class Capped:
    """Stands where Ray's engine stands: answers the one utility call as EngineCore does."""

    def __init__(self):
        self._engine_client = self.engine_core = self
        self.cap = 64

    async def call_utility_async(self, _, cap):
        self.cap = self.cap if cap is None else min(max(1, cap), 64)
        return self.cap, 3, 64


@pytest.fixture
def rig():
    accountant = EnergyAccountant(EnergyMeter(["estimated"]))
    base, metrics = parse_energy({"slo": {"ttft_ms": 5000, "tpot_ms": 100}}, "f"), MetricSet(LABELS)
    replica = Replica(
        name="r",
        accountant=accountant,
        engine=EngineState(),
        cap=BatchCap(Capped()),
        recorder=Recorder(metrics),
        policy=policy_for(base, MODEL),
        base=base,
        live=LiveSettings(),
        output_tokens=Window(30.0),
        live_model=Engine().live,
    )
    for _ in range(20):
        accountant.arrivals.add(time.monotonic() - 10.0, 50.0)
        replica.output_tokens.add(time.monotonic() - 10.0, 50.0)

    async def publish():
        pass

    yield ControlLoop(replica, publish), replica, metrics
    accountant.close()


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, {**LABELS, **labels})


def learned(replica, time_ratio):
    engine = Engine(Sensor(DeviceKind.CPU, Source.ESTIMATED)).run(60, time_ratio)
    replica.live_model.state = engine.live.state.resumed()


async def test_the_replica_decides_with_the_corrected_model_and_says_so(rig):
    loop, replica, metrics = rig
    await loop.tick()
    plain = loop.last_decision
    assert plain.reason is not Reason.MODEL_UNTRUSTED
    assert not any("live steps" in note for note in plain.notes)
    learned(replica, 1.5)
    await loop.tick()
    note = "model corrected by live steps: step time x1.51, step energy x1.00"
    assert loop.last_decision.notes[-1] == note
    assert loop.last_decision.proposed.max_num_active_seqs < plain.proposed.max_num_active_seqs
    assert value(metrics, "jouleserve_model_bias_ratio", quantity="step_time") == pytest.approx(
        1.5, rel=0.02
    )
    assert value(metrics, "jouleserve_model_bias_ratio", quantity="step_energy") is None
    assert value(metrics, "jouleserve_model_correction_ratio", quantity="step_time") > 1.4
    assert value(metrics, "jouleserve_model_verdict", verdict="corrected") == 1.0
    assert value(metrics, "jouleserve_model_verdict", verdict="fits") == 0.0


async def test_beyond_the_bound_the_replica_is_at_its_safe_point(rig, caplog):
    loop, replica, metrics = rig
    learned(replica, 4.0)
    with caplog.at_level(logging.INFO, logger="ray.serve"):
        await loop.tick()
        await loop.tick()
    assert loop.last_decision.reason is Reason.MODEL_UNTRUSTED
    assert loop.last_decision.chosen.max_num_active_seqs == 64
    assert value(metrics, "jouleserve_model_verdict", verdict="refit_suggested") == 1.0
    said = [r for r in caplog.records if r.getMessage().startswith("jouleserve_model ")]
    assert [record.levelname for record in said] == ["WARNING"]  # once, not per tick
    assert "refit_suggested: step time is 4.0" in said[0].getMessage()


async def test_without_steps_no_series_of_the_model_is_made_up(rig):
    loop, _, metrics = rig
    await loop.tick()
    for quantity in ("step_time", "step_energy"):
        for name in ("bias", "correction", "drift"):
            assert value(metrics, f"jouleserve_model_{name}_ratio", quantity=quantity) is None
    assert value(metrics, "jouleserve_model_verdict", verdict="fits") is None
    assert value(metrics, "jouleserve_model_residual_ratio") is None


async def test_windows_that_were_not_learned_from_are_counted(rig):
    loop, replica, metrics = rig
    stands_still = {"energy_ratio": 0.0, "idle_watts": 0.0, "busy_ratio": 0.7}
    engine = Engine().run(60).run(1, 9.0).run(4).run(15, **stands_still)
    replica.live_model = engine.live
    await loop.tick()
    name = "jouleserve_model_outlier_windows_total"
    assert value(metrics, name, quantity="step_time", fate="gated") == 1.0
    assert value(metrics, name, quantity="step_energy", fate="ignored") >= 1.0


async def test_a_failure_while_learning_is_counted_and_the_tick_goes_on(rig):
    loop, replica, metrics = rig
    replica.live_model.state = None
    await loop.tick()
    assert value(metrics, "jouleserve_control_errors_total", stage="model") == 1.0
    assert loop.last_decision.reason is not Reason.ERROR


async def test_switched_off_the_policy_keeps_the_profile_as_it_stands(rig):
    loop, replica, _ = rig
    replica.live_model.enabled = False
    learned(replica, 4.0)
    await loop.tick()
    assert not any("live steps" in note for note in loop.last_decision.notes)
    assert loop.last_decision.reason is not Reason.MODEL_UNTRUSTED
