"""Several replicas on one host that look at different times: no joule is charged twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.meters.share import SLOT_S, Charge, HostSample

CORES = 8.0


class Host:
    """A host whose replicas' CPU time and energy grow by steps; each replica looks when it likes
    and, as its thread does, at the end of every slot."""

    def __init__(self, allotted, idle_watts):
        self.now_s, self.busy_s, self.joules = 1000.0, 0.0, 0.0
        self.cpu_s = [0.0] * len(allotted)
        self.charges = [Charge(cores, CORES, idle_watts=idle_watts) for cores in allotted]
        self.shown = [0.0] * len(allotted)
        for index in range(len(allotted)):
            self.look(index)

    def look(self, index):
        sample = HostSample(
            time_s=self.now_s,
            tree_cpu_s=self.cpu_s[index],
            host_busy_s=self.busy_s,
            host_joules=(self.joules,),
        )
        (shown,) = self.charges[index].take(sample)
        assert shown >= self.shown[index]
        self.shown[index] = shown

    def run(self, seconds, busy, watts):
        """`busy`: cores that each replica keeps busy; the last entry is everybody else's."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            slot_end_s = (self.now_s // SLOT_S + 1.0) * SLOT_S
            step_s = min(end_s, slot_end_s) - self.now_s
            for index in range(len(self.cpu_s)):
                self.cpu_s[index] += busy[index] * step_s
            self.busy_s += sum(busy) * step_s
            self.joules += watts * step_s
            self.now_s += step_s
            if self.now_s == slot_end_s:
                for index in range(len(self.cpu_s)):
                    self.look(index)


@st.composite
def schedules(draw):
    count = draw(st.integers(1, 4))
    parts = st.lists(st.floats(0.0, CORES / count), min_size=count, max_size=count)
    steps = st.lists(
        st.tuples(
            st.sampled_from([0.125, 0.25, 0.5, 1.0, 1.75]),
            st.lists(st.floats(0.0, CORES / (count + 1)), min_size=count + 1, max_size=count + 1),
            st.floats(0.0, 400.0),
            st.sets(st.integers(0, count - 1)),
        ),
        min_size=1,
        max_size=25,
    )
    return draw(parts), draw(steps), draw(st.none() | st.floats(0.0, 200.0))


@given(schedules())
def test_replicas_that_look_at_different_times_never_get_more_than_the_host_used(schedule):
    allotted, steps, idle_watts = schedule
    host = Host(allotted, idle_watts)
    for seconds, busy, watts, looking in steps:
        host.run(seconds, busy, watts)
        for index in looking:
            host.look(index)
        slot_joules = 400.0 * SLOT_S
        settled = sum(charge.settled[0] for charge in host.charges)
        assert settled <= host.joules * (1.0 + 1e-9)
        assert sum(host.shown) <= host.joules + slot_joules * len(allotted)
    host.run(SLOT_S - host.now_s % SLOT_S, [0.0] * (len(allotted) + 1), 0.0)
    assert sum(charge.settled[0] for charge in host.charges) <= host.joules * (1.0 + 1e-9)


def test_a_seldom_looker_is_not_charged_at_the_mean_price_of_anothers_peak():
    """Without common slots B pays 90 J for its own peak and A, at the mean price, 50 J of 100."""
    host = Host([0.0, 0.0], idle_watts=0.0)
    host.run(5.0, [0.0, 1.0, 0.0], 18.0)
    host.look(1)
    host.run(5.0, [1.0, 0.0, 0.0], 2.0)
    host.look(0)
    assert host.shown == pytest.approx([10.0, 90.0])
    assert host.joules == pytest.approx(100.0)


def test_a_look_inside_a_slot_is_provisional():
    """B works first, at a high draw, and looks; A works then. The slot is settled alike for both."""
    host = Host([0.0, 0.0], idle_watts=0.0)
    host.run(0.5, [0.0, 1.0, 0.0], 180.0)
    host.look(1)
    assert host.shown == [0.0, 90.0]
    host.run(0.5, [1.0, 0.0, 0.0], 20.0)
    assert [charge.settled[0] for charge in host.charges] == pytest.approx([50.0, 50.0])
    host.run(1.0, [1.0, 1.0, 0.0], 100.0)
    assert host.shown == pytest.approx([100.0, 100.0])  # the reading has been caught up with
    assert sum(host.shown) == pytest.approx(host.joules)
