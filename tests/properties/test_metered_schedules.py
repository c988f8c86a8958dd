"""From raw counters to requests: under arrivals, aborts, wraps, resets and lost meters every joule
that the counters gave is on the books, once.

The chain is the real one (CounterTracker, DeviceReading, EnergyMeter, WindowReader, EnergyBooks);
only the raw counters and the clock are played.
"""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.core.attribution import StepShare, TokenWeigher
from policies.core.energy import EnergyBooks
from policies.model.attribution import ModelWeigher
from policies.model.latency import LatencyModel
from policies.model.power import PowerModel
from serve_app.meter_windows import WindowReader
from serve_app.meters import Device, DeviceKind, DeviceReading, EnergyMeter, Source
from serve_app.meters.counters import CounterTracker

RANGE_UJ = 60_000_000  # wraps many times, also unseen between two values
WIDE_RANGE_UJ = 700_000_000  # wraps at most once between two windows
MAX_WATTS = 1000.0
WEIGHERS = (
    TokenWeigher(),
    ModelWeigher(
        LatencyModel(
            t0_s=0.007, a_s_per_seq=8e-5, b_s_per_kv_token=2e-8, c_s_per_prefill_token=2.5e-5
        ),
        PowerModel(
            idle_watts=120.0,
            e0_joules_per_step=3.3,
            e1_joules_per_seq=0.065,
            e2_joules_per_kv_token=1e-5,
            e3_joules_per_prefill_token=0.017,
        ),
    ),
)


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@dataclass
class Counter:
    """A raw counter in microjoules as a kernel or driver shows it, and the truth behind it."""

    device: Device
    range_uj: int
    raw: int = 1_000_000
    lost: bool = False
    tracker: CounterTracker = field(init=False)

    def __post_init__(self):
        self.tracker = CounterTracker(
            joules_per_unit=1e-6, max_watts=MAX_WATTS, slack_s=0.1, wrap_units=self.range_uj
        )

    def use(self, watts, seconds):
        self.raw = (self.raw + int(watts * seconds * 1e6)) % self.range_uj

    def reset(self):
        self.raw = 0

    def read(self, now_s):
        if self.lost:
            return DeviceReading(
                device=self.device, joules=None, source=Source.UNAVAILABLE, reason="lost"
            )
        self.tracker.advance(self.raw, now_s)
        return DeviceReading(device=self.device, joules=self.tracker.joules, source=Source.COUNTER)


class Host:
    """The back-end over three counters: two GPUs and a CPU package."""

    name = "played"

    def __init__(self, range_uj):
        kinds = (("gpu-a", DeviceKind.GPU), ("gpu-b", DeviceKind.GPU), ("cpu", DeviceKind.CPU))
        self.counters = [Counter(Device(id=i, kind=k, name=i), range_uj) for i, k in kinds]

    def devices(self):
        return tuple(counter.device for counter in self.counters)

    def read(self, now_s):
        return tuple(counter.read(now_s) for counter in self.counters)

    def idle_watts(self):
        return None

    def close(self):
        pass


NAMES = [f"r{i}" for i in range(5)]
which = st.integers(0, 2)
shares = st.lists(
    st.builds(
        StepShare,
        request_id=st.sampled_from(NAMES),
        prefill_tokens=st.integers(0, 256),
        decode_tokens=st.integers(0, 2),
        context_tokens=st.integers(0, 2048),
    ),
    max_size=4,
    unique_by=lambda share: share.request_id,
).map(tuple)
event = st.one_of(
    st.tuples(st.just("step"), shares),
    st.tuples(st.just("end"), st.none()),
    st.tuples(st.just("window"), st.none()),
    st.tuples(st.just("leave"), st.sampled_from(NAMES)),  # finished or aborted: the same account
    st.tuples(st.just("die"), st.none()),
    st.tuples(st.just("reset"), which),
    st.tuples(st.just("lose"), which),
    st.tuples(st.just("return"), which),
)
schedules = st.lists(
    st.tuples(event, st.floats(0.0, 0.4), st.floats(0.0, MAX_WATTS)), min_size=1, max_size=40
)


def play(schedule, weigher, range_uj=RANGE_UJ):
    clock, host = Clock(), Host(range_uj)
    windows = WindowReader(EnergyMeter([host], clock=clock), clock())
    books = EnergyBooks(clock(), weigher)
    settled = []

    def close():
        window = windows.next()
        for kind, joules in window.late_joules.items():
            books.book_late(kind, joules)
        books.close_window(
            window.end_s, window.joules, {"gpu": 60.0}, coverage_ratio=window.coverage_ratio
        )

    close()  # the first values are the base
    for (kind, what), seconds, watts in schedule:
        clock.now_s += seconds
        for counter in host.counters:
            counter.use(watts, seconds)
        if kind == "step":
            books.begin_step(clock(), what)
        elif kind == "end":
            books.end_step(clock())
        elif kind == "window":
            close()
        elif kind == "leave":
            settled.append(books.settle(what, clock()))
        elif kind == "die":
            books.drop_steps(clock())
        elif kind == "reset":
            host.counters[what].reset()
        else:
            host.counters[what].lost = kind == "lose"
    for counter in host.counters:
        counter.lost = False
    clock.now_s += 0.1
    close()  # a device that comes back tells what it has counted meanwhile
    clock.now_s += 0.1
    close()
    return host, books, settled


@pytest.mark.slow
@settings(max_examples=1000)
@given(schedules, st.sampled_from(WEIGHERS))
def test_what_the_counters_gave_is_on_the_books_once(schedule, weigher):
    host, books, settled = play(schedule, weigher)
    counted = {"gpu": host.counters[:2], "cpu": host.counters[2:]}
    for kind, counters in counted.items():
        given_joules = math.fsum(counter.tracker.joules for counter in counters)
        metered = books.metered.get(kind, 0.0)
        assert math.isclose(metered, given_joules, rel_tol=1e-9, abs_tol=1e-9)
        parts = (books.settled, books.open_joules(), books.idle, books.unattributed)
        for part in (*parts, books.prepaid):
            assert part.get(kind, 0.0) >= -1e-9 * (1.0 + metered)
        total = math.fsum(part.get(kind, 0.0) for part in parts) - books.prepaid.get(kind, 0.0)
        scale = metered + books.prepaid.get(kind, 0.0)
        assert math.isclose(total, metered, rel_tol=1e-9, abs_tol=1e-9 * (1.0 + scale))
    told = math.fsum(energy.joules or 0.0 for energy in settled)
    assert math.isclose(
        told, math.fsum(books.settled.values()), rel_tol=1e-9, abs_tol=1e-9 * (1.0 + told)
    )
    assert all(energy.joules is None or energy.joules >= 0.0 for energy in settled)


@given(schedules)
def test_without_resets_and_losses_the_counters_gave_what_was_used(schedule):
    """Wraps alone lose nothing: the books hold the truth to the counter's unit."""
    kept = [one for one in schedule if one[0][0] not in {"reset", "lose", "return"}]
    dense = [
        part
        for (event_, seconds, watts) in kept
        for part in ((event_, seconds, watts * 0.9), (("window", None), 0.0, 0.0))
    ]
    host, books, _ = play(dense, TokenWeigher(), WIDE_RANGE_UJ)
    used = math.fsum(int(watts * seconds * 1e6) * 1e-6 for _, seconds, watts in dense)
    assert math.isclose(books.metered.get("cpu", 0.0), used, rel_tol=1e-9, abs_tol=1e-9)
    assert all(counter.tracker.anomalies == 0 for counter in host.counters)
