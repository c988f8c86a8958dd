"""The replica loop's power limit: chosen, bounded, given back, and told where it cannot be set."""

from dataclasses import replace

import pytest
from loop_cases import LABELS

from policies.core.types import OperatingPoint
from serve_app.actuators.base import Ask, LimitState
from serve_app.actuators.no_limit import NoLimits
from serve_app.actuators.replica_limit import INERT_TICKS, ReplicaLimit
from serve_app.decisions.approval import Approved
from serve_app.settings import LiveSettings, parse_energy, parse_live


class Limits:
    """An actuator that remembers what it was asked and answers as it is told to."""

    name = "limits"

    def __init__(self):
        self.asked, self.closed = [], 0
        self.state = LimitState(min_watts=200.0, max_watts=700.0, default_watts=700.0)

    def ask(self, ask):
        self.asked.append(ask)
        watts = ask.watts or 700.0
        self.state = replace(
            self.state, held=not ask.nothing, asked_watts=ask.watts, enforced_watts=watts,
            limit_watts=watts,
        )  # fmt: skip
        return self.state

    def close(self):
        self.closed += 1


@pytest.fixture
def limited(rig):
    loop, replica, *_ = rig
    actuator = Limits()
    replica.limit = ReplicaLimit(actuator, (150.0, 300.0, 500.0))
    return loop, replica, actuator


async def test_the_limit_follows_the_policy_once_it_is_known_what_may_be_set(limited, rig):
    loop, replica, actuator = limited
    replica.policy.limit_watts = 300.0
    await loop.tick()
    assert replica.policy.seen[-1][1].bounds.power_limits_watts == ()
    await loop.tick()
    await loop.tick()
    observation, settings, _ = replica.policy.seen[-1]
    assert settings.bounds.power_limits_watts == (300.0, 500.0)  # 150 W: not on this board
    assert observation.replicas[0].power_limit_watts == 300.0
    assert actuator.asked[-1] == Ask(watts=300.0)
    metrics = rig[3]
    value = metrics.registry.get_sample_value
    assert value("jouleserve_requested_power_limit_watts", LABELS) == 300.0
    assert value("jouleserve_power_limit_watts", LABELS) == 300.0
    assert value("jouleserve_power_limit_held", LABELS) == 1.0


@pytest.mark.parametrize("mode", ["advisory", "off"])
async def test_without_acting_the_limit_is_given_back(limited, mode):
    loop, replica, actuator = limited
    replica.policy.limit_watts = 300.0
    await loop.tick()
    assert actuator.asked[-1] == Ask(watts=300.0)
    replica.live = parse_live({"mode": mode}, "f")
    await loop.tick()
    assert actuator.asked[-1] == Ask()
    wanted = 300.0 if mode == "advisory" else None
    assert replica.limit.state.asked_watts == wanted


async def test_in_approve_mode_only_what_was_approved_is_set(limited):
    loop, replica, actuator = limited
    replica.policy.limit_watts = 300.0
    replica.live = parse_live({"mode": "approve"}, "f")
    await loop.tick()
    assert actuator.asked[-1] == Ask()
    assert replica.cap.in_force.max_num_active_seqs == 64
    assert replica.hint is None
    point = OperatingPoint(num_replicas=1, max_num_active_seqs=20, power_limit_watts=500.0)
    replica.approved = Approved(point=point)
    replica.policy.cap = 7  # what is wanted since is not what was approved
    await loop.tick()
    assert actuator.asked[-1] == Ask(watts=500.0)
    assert replica.cap.in_force.max_num_active_seqs == 20
    assert replica.hint == point
    replica.live = parse_live({"mode": "advisory"}, "f")
    await loop.tick()
    assert actuator.asked[-1] == Ask()
    assert replica.cap.in_force.max_num_active_seqs == 64


async def test_a_power_budget_bounds_the_policy_and_holds_where_it_asks_for_all(limited):
    loop, replica, actuator = limited
    actuator.state = replace(actuator.state, max_watts=450.0, capped=True)
    await loop.tick()
    await loop.tick()
    bounds = replica.policy.seen[-1][1].bounds
    assert (bounds.power_limits_watts, bounds.max_limit_watts) == ((300.0,), 450.0)
    assert actuator.asked[-1] == Ask(watts=450.0)  # the policy asked for the device's default


@pytest.mark.parametrize(("power_capped", "clock_mhz"), [(False, 600), (True, None), (None, None)])
async def test_a_limit_that_does_nothing_gives_way_to_the_clock_that_it_was_to_give(
    power_capped, clock_mhz
):
    actuator = Limits()
    actuator.state = replace(actuator.state, max_clock_mhz=2000, power_capped=power_capped)
    limit = ReplicaLimit(actuator, (300.0,), lambda watts: watts / 1000.0)
    for _ in range(INERT_TICKS):
        await limit.bring(300.0, active=True)
        assert actuator.asked[-1] == Ask(watts=300.0)
        assert limit.judge(250.0) is True
    await limit.bring(300.0, active=True)
    assert actuator.asked[-1] == Ask(watts=300.0, clock_mhz=clock_mhz)
    await limit.bring(300.0, active=False)
    assert actuator.asked[-1] == Ask()
    await limit.bring(300.0, active=True)
    assert limit.judge(295.0) is False  # the limit does something again
    await limit.bring(300.0, active=True)
    assert actuator.asked[-1] == Ask(watts=300.0)


async def test_each_replica_keeps_its_share_of_the_fleets_power_budget(limited):
    loop, replica, actuator = limited
    power = {"actuator": "agent", "fleet_budget_watts": 1800.0}
    replica.base = parse_energy({"power": power}, "f")

    async def share(pool):
        replica.pool_replicas = pool
        await loop.tick()
        await loop.tick()
        return replica.policy.seen[-1][1].bounds.max_limit_watts

    assert await share(None) == 300.0  # the lowest limit, until it is known who shares
    assert await share(4) == 450.0
    assert await share(1) == 1800.0
    told = replica.control_settings().bounds  # what the fleet is told
    assert (told.max_limit_watts, told.fleet_budget_watts) == (None, 1800.0)
    replica.live = parse_live({"fleet_budget_watts": 2000}, "f", replica.base)
    assert await share(4) == 500.0
    assert replica.control_settings().bounds.fleet_budget_watts == 2000.0
    replica.live = LiveSettings()
    assert await share(4) == 450.0


async def test_a_budget_without_a_profile_of_limits_holds_and_is_not_planned_with(rig):
    loop, replica, *_ = rig
    actuator = Limits()
    actuator.state = replace(actuator.state, max_watts=450.0, capped=True)
    replica.limit = ReplicaLimit(actuator)
    await loop.tick()
    await loop.tick()
    assert replica.policy.seen[-1][1].bounds.limits == (None,)
    assert actuator.asked[-1] == Ask(watts=450.0)


async def test_limits_that_nobody_can_set_though_somebody_shall_are_told(rig, caplog):
    loop, replica, _, metrics, _ = rig
    replica.limit = ReplicaLimit(NoLimits("no GPU of this replica is metered"))
    await loop.tick()
    assert "unavailable: no GPU of this replica is metered" in caplog.text
    assert replica.limit.row()["actuator"] == "unavailable"
    value = metrics.registry.get_sample_value
    assert value("jouleserve_power_limit_available", LABELS) == 0.0


async def test_limits_that_cannot_be_set_are_not_offered_and_the_tick_goes_on(limited, rig):
    loop, replica, actuator = limited
    actuator.state = replace(actuator.state, reason="the GPU has fallen off the bus")
    await loop.tick()
    await loop.tick()
    assert replica.policy.seen[-1][1].bounds.power_limits_watts == ()
    assert rig[2].cap == 12
    value = rig[3].registry.get_sample_value
    assert value("jouleserve_power_limit_available", LABELS) == 0.0
    assert replica.limit.row()["reason"] == "the GPU has fallen off the bus"


async def test_after_the_end_nothing_is_set(limited):
    loop, replica, actuator = limited
    replica.limit.close()
    replica.policy.limit_watts = 300.0
    await loop.tick()
    assert (actuator.asked, actuator.closed) == ([], 1)


async def test_where_nobody_sets_limits_there_are_no_series_about_it(rig):
    loop, _, _, metrics, _ = rig
    await loop.tick()
    value = metrics.registry.get_sample_value
    assert value("jouleserve_power_limit_available", LABELS) is None
