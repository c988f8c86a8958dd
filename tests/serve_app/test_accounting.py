"""Meter, engine events and books joined: settled once, whoever asks first."""

import itertools
import time

import pytest

from serve_app.accounting import EnergyAccountant, to_api
from serve_app.engine.step_link import StepMessage, StepSender
from serve_app.meters import Device, DeviceKind, DeviceReading, EnergyMeter, Source

CPU = Device(id="cpu", kind=DeviceKind.CPU, name="test host")


class Ramp:
    """A back-end at the lowest seam: a counter that rises with the clock at `watts`."""

    name = "ramp"

    def __init__(self, watts=10.0):
        self.watts, self.start_s, self.lost = watts, time.monotonic(), False

    def devices(self):
        return (CPU,)

    def read(self, now_s):
        joules = None if self.lost else self.watts * (now_s - self.start_s)
        reason = "unplugged" if self.lost else None
        source = Source.UNAVAILABLE if self.lost else Source.ESTIMATED
        return (
            DeviceReading(device=CPU, joules=joules, source=source, reason=reason, draw_watts=None),
        )

    def idle_watts(self):
        return None

    def close(self):
        pass


@pytest.fixture
def rig():
    backend = Ramp()
    accountant = EnergyAccountant(EnergyMeter([backend]))
    sender = StepSender(accountant.receiver.path)
    accountant.drain()
    yield accountant, sender, backend
    accountant.close()


HANDLES = itertools.count()


def arrive(sender, internal_id, prompt_tokens=8):
    handle = next(HANDLES)
    names = [(handle, internal_id)]
    shares = [handle, prompt_tokens, 0, 0]
    sender.send(StepMessage(kind="a", time_s=time.monotonic(), names=names, shares=shares))
    return handle


def step(sender, *handles, seconds=0.03, finished=()):
    shares = [x for handle in handles for x in (handle, 0, 1, 9)]
    sender.send(StepMessage(kind="b", time_s=time.monotonic(), shares=shares))
    time.sleep(seconds)
    sender.send(StepMessage(kind="e", time_s=time.monotonic(), finished=list(finished)))


def balance(accountant):
    assert all(abs(r) < 1e-9 for r in accountant.books.residual_joules().values())


def test_a_response_is_paid_for_its_steps_and_asking_twice_changes_nothing(rig):
    accountant, sender, _ = rig
    handle = arrive(sender, "chatcmpl-1-0a1b2c3d")
    step(sender, handle, finished=[handle])
    first = accountant.response_energy("chatcmpl-1")
    assert first.joules == pytest.approx(0.3, rel=0.5)
    assert accountant.response_energy("chatcmpl-1") == first
    assert accountant.finish("chatcmpl-1").joules == first.joules  # told to the metrics once
    assert accountant.finish("chatcmpl-1").joules is None
    balance(accountant)


def test_several_prompts_make_one_response(rig):
    accountant, sender, _ = rig
    a, b = arrive(sender, "cmpl-2-0-00000001"), arrive(sender, "cmpl-2-1-00000002")
    step(sender, a, b, finished=[a])
    accountant.drain()
    part = accountant.finish("cmpl-2-0")
    step(sender, b, finished=[b])
    whole = accountant.response_energy("cmpl-2")
    assert whole.joules > part.joules > 0
    assert accountant.finish("cmpl-2-1").joules == pytest.approx(whole.joules - part.joules)
    balance(accountant)


def test_a_stop_string_settles_before_the_engine_lets_go(rig):
    accountant, sender, _ = rig
    aborted = []
    accountant.on_aborted = aborted.append
    handle = arrive(sender, "chatcmpl-3-0a1b2c3d")
    step(sender, handle)
    assert accountant.finish("chatcmpl-3").joules > 0
    sender.send(StepMessage(kind="f", time_s=time.monotonic(), finished=[handle]))
    accountant.drain()
    assert aborted == []
    balance(accountant)


def test_an_abort_is_told_once_with_its_joules(rig):
    accountant, sender, _ = rig
    aborted = []
    accountant.on_aborted = aborted.append
    handle = arrive(sender, "chatcmpl-4-0a1b2c3d")
    step(sender, handle)
    sender.send(StepMessage(kind="f", time_s=time.monotonic(), finished=[handle]))
    accountant.drain()
    accountant.drain()
    (energy,) = aborted
    assert energy.joules > 0
    assert accountant.books.open_requests == 0
    balance(accountant)


def test_a_dead_engine_leaves_balanced_books(rig):
    accountant, sender, _ = rig
    handle = arrive(sender, "chatcmpl-5-0a1b2c3d")
    sender.send(StepMessage(kind="b", time_s=time.monotonic(), shares=[handle, 0, 1, 9]))
    time.sleep(0.03)
    accountant.engine_died()
    assert accountant.response_energy("chatcmpl-5").joules > 0
    balance(accountant)


def test_a_lost_meter_is_unavailable_with_its_reason(rig):
    accountant, sender, backend = rig
    backend.lost = True
    accountant.close_window()
    handle = arrive(sender, "chatcmpl-6-0a1b2c3d")
    step(sender, handle, finished=[handle])
    told = accountant.energy_object("chatcmpl-6")
    assert told["joules"] is None
    assert told["source"] == "unavailable"
    assert "unplugged" in told["reason"]


def test_an_unknown_response_has_no_joules(rig):
    accountant, _, _ = rig
    assert accountant.response_energy("chatcmpl-nobody").joules is None


def test_warm_up_is_no_arrival(rig):
    accountant, sender, _ = rig
    arrive(sender, "jouleserve-warm-up-0a1b2c3d")
    arrive(sender, "chatcmpl-7-0a1b2c3d", prompt_tokens=20)
    accountant.drain()
    assert accountant.arrivals.count(time.monotonic()) == 1
    assert accountant.arrivals.mean(time.monotonic()) == 20


def test_warm_up_joules_are_idle_not_a_request(rig):
    accountant, sender, _ = rig
    handle = arrive(sender, "jouleserve-warm-up-0a1b2c3d")
    step(sender, handle, finished=[handle])
    accountant.close_window()
    totals = accountant.totals()
    assert totals["attributed"] == pytest.approx(0.0, abs=1e-9)
    assert totals["idle"] == pytest.approx(totals["meter"])
    balance(accountant)


def test_no_back_end_at_all_is_said_everywhere():

    accountant = EnergyAccountant(EnergyMeter(["rapl"]))
    told = to_api(accountant.response_energy("x"), accountant.windows, "token_weighted")
    assert told["joules"] is None
    assert told["reason"].startswith("rapl")
    accountant.close()
