"""What every actuator of power limits must do, run by test_power_limit.py under the fake NVML
library: the agent as a process of its own, in this process, through a fake zeusd."""

import pytest
from agents import running, wait_for
from fake_nvml import GPU_IS_LOST, NO_PERMISSION, uuid_of
from fake_zeusd import FakeZeusd

from serve_app.actuators.agent_limit import AgentLimits
from serve_app.actuators.base import Ask
from serve_app.actuators.no_limit import Advisory, NoLimits
from serve_app.actuators.nvml_limit import NvmlLimits
from serve_app.actuators.zeusd_limit import ZeusdLimits

ONE, TWO = uuid_of(0), uuid_of(1)


def watts(fake):
    return [fake.state.dev[index].limit_mw / 1e3 for index in range(2)]


@pytest.fixture
def agent(fake, tmp_path):
    with running(tmp_path / "agent", "--min-interval-s", "0") as one:
        yield one


@pytest.fixture
def zeusd(fake, tmp_path):
    one = FakeZeusd(tmp_path / "zeusd.sock", fake)
    yield one
    one.close()


@pytest.fixture(params=["agent", "nvml", "zeusd"])
def actuator(request, fake, tmp_path):
    """Each of those that can set something, for both GPUs; no write waits for the one before."""
    if request.param == "agent":
        agent = request.getfixturevalue("agent")
        one = AgentLimits([ONE, TWO], holder="test", path=agent.path)
    elif request.param == "nvml":
        one = NvmlLimits([ONE, TWO], holder="test", folder=tmp_path / "nvml", min_interval_s=0.0)
    else:
        request.getfixturevalue("zeusd")
        one = ZeusdLimits([ONE, TWO], path=tmp_path / "zeusd.sock")
    yield one
    one.close()


def test_a_limit_is_set_on_all_gpus_and_is_told(fake, actuator):
    state = actuator.ask(Ask(watts=300.0))
    assert watts(fake) == [300.0, 300.0]
    assert (state.reason, state.held, state.capped) == (None, True, False)
    assert (state.limit_watts, state.enforced_watts, state.asked_watts) == (300.0, 300.0, 300.0)
    assert (state.min_watts, state.max_watts) == (200.0, 700.0)
    assert actuator.ask(Ask(watts=450.0)).limit_watts == 450.0
    assert watts(fake) == [450.0, 450.0]


def test_the_same_is_not_written_again(fake, actuator):
    actuator.ask(Ask(watts=300.0))
    before = [fake.state.dev[index].n_set_limit for index in range(2)]
    for _ in range(3):
        assert actuator.ask(Ask(watts=300.0)).limit_watts == 300.0
    assert [fake.state.dev[index].n_set_limit for index in range(2)] == before


@pytest.mark.parametrize(("asked", "got"), [(10.0, 200.0), (9000.0, 700.0)])
def test_what_is_out_of_bounds_is_brought_inside(fake, actuator, asked, got):
    actuator.ask(Ask(watts=asked))
    assert watts(fake) == [got, got]


def test_asking_for_nothing_gives_back_what_was_found(fake, actuator):
    fake.state.dev[0].limit_mw, fake.state.dev[1].limit_mw = 650_000, 600_000
    actuator.ask(Ask(watts=300.0))
    state = actuator.ask(Ask())
    wait_for(lambda: watts(fake) == [650.0, 600.0])
    assert (state.held, state.asked_watts, state.reason) == (False, None, None)


def test_closing_gives_back_and_may_be_done_twice(fake, actuator):
    fake.state.dev[1].limit_mw = 600_000
    actuator.ask(Ask(watts=300.0, clock_mhz=1200))
    assert fake.state.dev[0].lock_max == 1200
    actuator.close()
    actuator.close()
    wait_for(lambda: watts(fake) == [700.0, 600.0])
    assert fake.state.dev[0].lock_max == 0


def test_clocks_come_and_go_beside_a_limit(fake, actuator):
    actuator.ask(Ask(clock_mhz=1200))
    assert (fake.state.dev[1].lock_max, watts(fake)) == (1200, [700.0, 700.0])
    assert actuator.ask(Ask(watts=300.0, clock_mhz=900)).clock_mhz == 900
    assert (fake.state.dev[1].lock_max, watts(fake)) == (900, [300.0, 300.0])
    assert actuator.ask(Ask(watts=300.0)).clock_mhz is None
    assert fake.state.dev[1].lock_max == 0


def test_what_another_program_sets_is_told_and_not_fought(fake, actuator):
    actuator.ask(Ask(watts=300.0))
    fake.state.dev[0].limit_mw = 500_000
    wait_for(lambda: actuator.ask(Ask(watts=300.0)).drift_watts == 500.0)
    assert watts(fake) == [500.0, 300.0]


@pytest.mark.parametrize("actuator", ["agent", "nvml"], indirect=True)
def test_a_gpu_that_is_lost_is_a_reason_and_no_exception(fake, actuator):
    actuator.ask(Ask(watts=300.0))
    fake.fail("*", GPU_IS_LOST)
    wait_for(lambda: actuator.ask(Ask(watts=300.0)).reason is not None)
    assert "fallen off the bus" in actuator.ask(Ask(watts=350.0)).reason
    fake.heal()
    wait_for(lambda: actuator.ask(Ask(watts=300.0)).reason is None)


# ---- each its own


def test_an_agent_that_is_not_there_is_a_reason(fake, tmp_path):
    one = AgentLimits([ONE], holder="test", path=tmp_path / "none.sock")
    state = one.ask(Ask(watts=300.0))
    assert (state.available, state.held) == (False, False)
    assert "is `jouleserve power-agent` running?" in state.reason
    one.close()


def test_after_another_agent_began_the_lease_is_taken_anew(fake, agent):
    one = AgentLimits([ONE], holder="test", path=agent.path)
    one.ask(Ask(watts=300.0))
    agent.kill()
    assert not one.ask(Ask(watts=300.0)).available
    agent.start()
    assert watts(fake)[0] == 700.0
    assert one.ask(Ask(watts=300.0)).held
    wait_for(lambda: watts(fake)[0] == 300.0)
    one.close()


def test_a_gpu_of_another_replica_is_a_reason_with_its_name(fake, agent):
    first = AgentLimits([ONE], holder="first", path=agent.path)
    first.ask(Ask(watts=300.0))
    second = AgentLimits([ONE], holder="second", path=agent.path)
    for ask in (Ask(watts=400.0), Ask(), Ask(watts=400.0)):  # whatever is asked meanwhile
        assert "held by first" in second.ask(ask).reason
    assert "held by first" in AgentLimits([ONE], holder="third", path=agent.path).ask(Ask()).reason
    assert watts(fake)[0] == 300.0
    second.close()
    assert first.ask(Ask(watts=300.0)).held
    first.close()


def test_a_lease_that_was_refused_is_asked_for_again_after_a_while(fake, agent):
    one = AgentLimits([ONE], holder="test", path=agent.path)
    fake.fail("nvmlDeviceSetPowerManagementLimit", NO_PERMISSION)
    assert "may not set a power limit" in one.ask(Ask(watts=300.0)).reason
    fake.heal()
    assert "may not set a power limit" in one.ask(Ask(watts=300.0)).reason
    assert wait_for(lambda: one.ask(Ask(watts=300.0)).held) > 1.0
    one.close()


def test_a_budget_of_the_node_is_a_cap_that_the_replica_hears_of(fake, tmp_path):
    budget = tmp_path / "budget"
    budget.write_text("1000")
    options = ("--min-interval-s", "0", "--budget-file", str(budget))
    with running(tmp_path / "capped", *options) as agent:
        first = AgentLimits([ONE], holder="first", path=agent.path)
        second = AgentLimits([TWO], holder="second", path=agent.path)
        second.ask(Ask(watts=700.0))
        first.ask(Ask(watts=200.0))
        wait_for(lambda: watts(fake) == [200.0, 700.0])
        state = first.ask(Ask(watts=200.0))
        assert (state.capped, state.max_watts) == (True, 500.0)  # were it to ask for all
        wait_for(lambda: first.ask(Ask(watts=600.0)).limit_watts == 500.0)
        wait_for(lambda: watts(fake) == [500.0, 500.0])
        budget.write_text("")
        wait_for(lambda: not first.ask(Ask(watts=600.0)).capped)
        wait_for(lambda: watts(fake) == [600.0, 700.0] or first.ask(Ask(watts=600.0)) is None)
        first.close()
        second.close()


def test_a_killed_replica_of_its_own_is_put_back_by_the_next(fake, tmp_path):
    first = NvmlLimits([ONE], holder="first", folder=tmp_path)
    first.ask(Ask(watts=300.0))
    state = (tmp_path / f"power-limits.{ONE}.json").read_text()
    first.close()
    fake.state.dev[0].limit_mw = 300_000
    (tmp_path / f"power-limits.{ONE}.json").write_text(state)
    second = NvmlLimits([ONE], holder="second", folder=tmp_path)
    second.ask(Ask())
    wait_for(lambda: second.ask(Ask()) and watts(fake)[0] == 700.0)
    second.close()


def test_zeusd_that_refuses_is_a_reason(fake, zeusd, tmp_path):
    one = ZeusdLimits([ONE], path=tmp_path / "zeusd.sock")
    one.ask(Ask(watts=300.0))
    zeusd.status = 403
    state = one.ask(Ask(watts=400.0))
    assert (watts(fake)[0], state.available) == (300.0, False)
    assert "403" in state.reason
    zeusd.status = 200
    assert one.ask(Ask(watts=400.0)).limit_watts == 400.0
    one.close()


def test_advice_sets_nothing_and_lets_go_of_what_was_set(fake, agent):
    one = AgentLimits([ONE], holder="test", path=agent.path)
    one.ask(Ask(watts=300.0))
    state = Advisory(one).ask(Ask(watts=400.0))
    wait_for(lambda: watts(fake)[0] == 700.0)
    assert (state.asked_watts, state.held, state.available) == (400.0, False, True)
    assert Advisory(one).name == "advisory:agent"
    one.close()


def test_none_sets_nothing_and_says_so(fake):
    state = NoLimits().ask(Ask(watts=300.0))
    assert (state.available, state.asked_watts) == (False, 300.0)
    assert "actuator is none" in state.reason
    assert watts(fake) == [700.0, 700.0]
