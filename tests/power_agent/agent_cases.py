"""The agent over its socket, run by test_power_agent.py under the fake NVML library: leases, bounds,
putting back, drift, errors of the driver."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from agents import ROOT, AgentProcess, running, wait_for
from fake_nvml import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, uuid_of

from policies.core.errors import ActuationRefused
from serve_app.power_agent.client import AgentUnavailable
from serve_app.power_agent.leases import UnknownLease

SET = "nvmlDeviceSetPowerManagementLimit"
ONE, TWO = uuid_of(0), uuid_of(1)
INSUFFICIENT_POWER = 8


def watts(fake):
    return [fake.state.dev[index].limit_mw / 1e3 for index in range(2)]


def events(agent):
    return [json.loads(line) for line in agent.audit.read_text().splitlines()]


@pytest.fixture
def agent(fake, tmp_path):
    with running(tmp_path / "agent", "--min-interval-s", "0.2") as one:
        yield one


@pytest.fixture
def client(agent):
    one = agent.client()
    yield one
    one.close()


def acquire(client, *uuids, limit=300.0, ttl_s=30.0, holder="replica 1"):
    return client.acquire(uuids or (ONE,), watts=limit, ttl_s=ttl_s, holder=holder)


def acquired(client, *uuids):
    """A lease, once what failed before was tried again."""
    found = []

    def got():
        try:
            found.append(acquire(client, *uuids))
        except AgentUnavailable:
            return False
        return True

    wait_for(got)
    return found[-1]


# ---- leases


def test_a_lease_sets_the_limit_and_its_release_puts_back_what_was_found(fake, client, agent):
    fake.state.dev[0].limit_mw = 650_000
    lease = acquire(client)
    assert watts(fake) == [300.0, 700.0]
    (gpu,) = lease["gpus"]
    assert (gpu["found_watts"], gpu["set_watts"], gpu["enforced_watts"]) == (650.0, 300.0, 300.0)
    client.release(lease["lease"])
    wait_for(lambda: watts(fake) == [650.0, 700.0])
    wait_for(lambda: len(events(agent)) == 5)
    assert not agent.state.exists()
    known = [one["event"] for one in events(agent)]
    assert known[:3] == ["started", "set", "leased"]
    assert sorted(known[3:]) == ["put back", "released"]


def test_a_lease_that_is_not_renewed_lapses(fake, client):
    acquire(client, ttl_s=1.0)
    assert 0.7 < wait_for(lambda: watts(fake) == [700.0, 700.0]) < 2.0


def test_a_lease_that_is_renewed_stays_and_moves(fake, client):
    lease = acquire(client, ttl_s=1.0)["lease"]
    for step in range(15):
        client.renew(lease, watts=310.0 if step > 7 else None)
        time.sleep(0.1)
        assert watts(fake)[0] == (310.0 if step > 7 else 300.0)
    assert wait_for(lambda: watts(fake)[0] == 700.0) < 2.0
    with pytest.raises(UnknownLease, match="lapsed"):
        client.renew(lease)


def test_one_owner_per_gpu_and_the_second_is_told_who_it_is(fake, client, agent):
    acquire(client, holder="replica llm#1")
    other = agent.client()
    with pytest.raises(ActuationRefused, match=r"held by replica llm#1 \(process \d+, user \d+\)"):
        acquire(other, TWO, ONE, limit=200.0, holder="replica llm#2")
    assert watts(fake) == [300.0, 700.0]
    acquire(other, TWO, limit=200.0)
    assert watts(fake) == [300.0, 200.0]
    assert {gpu["holder"][:9] for gpu in other.status()["gpus"]} == {"replica l", "replica 1"}


def test_an_id_is_shown_to_its_holder_alone(client, agent):
    lease = acquire(client)["lease"]
    assert lease not in json.dumps(client.status())
    assert lease not in agent.audit.read_text()


def test_the_gpus_of_a_lease_move_together_or_not_at_all(fake, client):
    fake.state.dev[1].limit_mw = 600_000
    fake.fail(SET, GPU_IS_LOST, device=1)
    with pytest.raises(AgentUnavailable, match="fallen off the bus"):
        acquire(client, ONE, TWO)
    wait_for(lambda: watts(fake) == [700.0, 600.0])
    fake.heal()
    lease = acquired(client, ONE, TWO)["lease"]
    wait_for(lambda: watts(fake) == [300.0, 300.0])
    client.release(lease)
    wait_for(lambda: watts(fake) == [700.0, 600.0])


def test_a_gpu_is_not_written_more_often_than_allowed(fake, tmp_path):
    with running(tmp_path / "slow", "--min-interval-s", "1") as agent:
        client = agent.client()
        lease = acquire(client)["lease"]
        for step in range(8):
            (gpu,) = client.renew(lease, watts=310.0 + step)["gpus"]
            assert (gpu["set_watts"], gpu["wanted_watts"]) == (300.0, 310.0 + step)
        wait_for(lambda: watts(fake)[0] == 317.0)  # the last wish, none of those between
        assert fake.state.dev[0].n_set_limit == 2


# ---- bounds


@pytest.mark.parametrize("limit", [0.0, -300.0, 199.0, 701.0, 1e9])
def test_a_limit_outside_of_the_board_is_refused_with_the_range(fake, client, limit):
    with pytest.raises(ActuationRefused, match="allowed here: 200 to 700 W"):
        acquire(client, limit=limit)
    lease = acquire(client)["lease"]
    with pytest.raises(ActuationRefused, match="allowed here: 200 to 700 W"):
        client.renew(lease, watts=limit)
    assert watts(fake) == [300.0, 700.0]


def test_the_operators_bounds_are_within_the_boards(fake, tmp_path):
    options = ("--floor-watts", "250", "--ceiling-watts", "600")
    with running(tmp_path / "bounds", *options) as agent:
        client = agent.client()
        for limit in (249.0, 601.0):
            with pytest.raises(ActuationRefused, match="allowed here: 250 to 600 W"):
                acquire(client, limit=limit)
        acquire(client, limit=250.0)
        assert watts(fake) == [250.0, 700.0]


def test_the_budget_of_the_node_is_shared_and_follows_its_file(fake, tmp_path):
    file = tmp_path / "budget"
    file.write_text("1000\n")
    options = ("--budget-file", str(file), "--min-interval-s", "0")
    with running(tmp_path / "budget-agent", *options) as agent:
        client = agent.client()
        first = acquire(client, ONE, limit=700.0)
        assert first["gpus"][0]["wanted_watts"] == 300.0  # the other, not leased, may draw 700
        second = acquire(client, TWO, limit=650.0)["lease"]
        wait_for(lambda: watts(fake) == [500.0, 500.0])
        client.renew(second, watts=350.0)
        wait_for(lambda: watts(fake) == [650.0, 350.0])
        file.write_text("00:00-24:00 800\n")  # no time of day: the last good one holds
        time.sleep(1.3)
        assert watts(fake) == [650.0, 350.0]
        assert any(one["event"] == "budget file" for one in events(agent))
        file.write_text("# demand response\n00:00-00:00 100\n600\n")
        wait_for(lambda: watts(fake) == [300.0, 300.0])
        file.write_text("300\n")  # less than both boards can do
        wait_for(lambda: watts(fake) == [200.0, 200.0])
        status = wait_status(client, lambda s: s["over_budget_watts"] == 100.0)
        assert status["budget_watts"] == 300.0
        file.write_text("")
        wait_for(lambda: watts(fake) == [700.0, 350.0])


def wait_status(client, condition):
    found = {}

    def so():
        found.update(client.status())
        return condition(found)

    wait_for(so)
    return found


# ---- whatever ends the agent


def test_a_told_agent_puts_everything_back(fake, client, agent):
    fake.state.dev[1].limit_mw = 500_000
    acquire(client, ONE, TWO)
    assert watts(fake) == [300.0, 300.0]
    assert agent.stop() == 0
    assert watts(fake) == [700.0, 500.0]
    assert (agent.state.exists(), agent.path.exists()) == (False, False)


def test_an_agent_that_follows_a_killed_one_puts_back_before_it_answers(fake, client, agent):
    fake.state.dev[0].limit_mw = 650_000
    acquire(client)
    agent.kill()
    assert watts(fake) == [300.0, 700.0]
    agent.start()
    assert watts(fake) == [650.0, 700.0]
    with pytest.raises(UnknownLease):
        agent.client().renew("any")


def test_what_another_has_set_after_the_kill_is_left(fake, client, agent):
    acquire(client)
    agent.kill()
    fake.state.dev[0].limit_mw = 450_000
    agent.start()
    time.sleep(0.5)
    assert watts(fake) == [450.0, 700.0]


def test_after_a_reload_of_the_driver_what_was_found_is_set_again(fake, client, agent):
    fake.state.dev[0].limit_mw = 600_000
    acquire(client)
    agent.kill()
    fake.state.dev[0].limit_mw = fake.state.dev[0].default_mw
    agent.start()
    assert watts(fake) == [600.0, 700.0]


def test_two_agents_do_not_share_a_node(fake, client, agent, tmp_path):
    second = AgentProcess(tmp_path / "second")
    second.state = agent.state
    second.start(wait=False)
    assert second.process.wait(timeout=20) == 1
    assert "one at a time may" in second.errors.read_text()
    third = AgentProcess(tmp_path / "third")
    third.path = agent.path
    third.start(wait=False)
    assert third.process.wait(timeout=20) == 1
    assert "another process listens there" in third.errors.read_text()
    assert client.status()["ok"]


def test_a_rotated_audit_file_is_begun_anew(client, agent):
    agent.audit.rename(agent.audit.with_suffix(".1"))
    agent.process.send_signal(signal.SIGHUP)
    wait_for(agent.audit.exists)
    acquire(client)
    assert {one["event"] for one in events(agent)} == {"set", "leased"}


# ---- another program writes the limit


def test_drift_is_seen_and_said_and_not_fought(fake, client, agent):
    lease = acquire(client)["lease"]
    writes = fake.state.dev[0].n_set_limit
    theirs = [450.0, 500.0, 450.0]

    def seen():
        return [one["limit_watts"] for one in events(agent) if one["event"] == "drift"]

    for step, limit_watts in enumerate(theirs):
        fake.state.dev[0].limit_mw = round(1e3 * limit_watts)
        wait_for(lambda wanted=theirs[: step + 1]: seen() == wanted, timeout_s=5.0)
        answer = client.renew(lease, watts=310.0 + step)
        assert answer["gpus"][0]["state"] == "drift"
    time.sleep(1.5)  # a second to fight back in
    assert fake.state.dev[0].n_set_limit == writes
    assert seen() == theirs
    client.release(lease)
    wait_for(lambda: not agent.state.exists())
    assert watts(fake)[0] == 450.0  # theirs
    assert any("another program has set" in str(one.get("said")) for one in events(agent))


def test_a_lower_limit_out_of_band_is_shown_as_the_one_enforced(fake, client):
    lease = acquire(client)["lease"]
    fake.state.dev[0].oob_limit_mw = 250_000
    wait_for(lambda: client.renew(lease)["gpus"][0]["enforced_watts"] == 250.0)
    (gpu,) = client.renew(lease)["gpus"]
    assert (gpu["limit_watts"], gpu["state"]) == (300.0, "ok")


# ---- the driver refuses


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (NO_PERMISSION, "may not set a power limit, root may"),
        (NOT_SUPPORTED, "not supported by this GPU"),
        (GPU_IS_LOST, "fallen off the bus"),
        (INSUFFICIENT_POWER, "power cables"),
    ],
)
def test_a_limit_that_cannot_be_set_is_unavailable_with_its_reason(fake, client, code, words):
    fake.fail(SET, code, device=0)
    with pytest.raises(AgentUnavailable, match=words):
        acquire(client)
    assert watts(fake) == [700.0, 700.0]
    acquire(client, TWO)
    assert watts(fake) == [700.0, 300.0]
    fake.heal()
    acquired(client)
    wait_for(lambda: watts(fake) == [300.0, 300.0])
    assert client.status()["gpus"][0]["state"] == "ok"


def test_a_write_that_fails_under_a_lease_is_said_and_tried_again(fake, client, agent):
    lease = acquire(client)["lease"]
    fake.fail(SET, NO_PERMISSION, device=0)
    time.sleep(0.3)
    client.renew(lease, watts=350.0)
    time.sleep(1.2)  # read back, and tried once more
    (gpu,) = client.renew(lease)["gpus"]
    assert (gpu["state"], gpu["limit_watts"]) == ("unavailable", 300.0)
    assert "may not set a power limit" in gpu["reason"]
    assert 1 <= sum(one["event"] == "failed" for one in events(agent)) <= 2
    fake.heal()
    wait_for(lambda: watts(fake)[0] == 350.0)
    assert client.renew(lease)["gpus"][0]["state"] == "ok"


def test_instances_of_mig_share_a_limit_so_that_none_may_set_it(fake, client):
    fake.state.dev[0].mig_mode = 1
    with pytest.raises(AgentUnavailable, match="MIG is on"):
        acquire(client)
    fake.state.dev[1].mig_mode = 2  # a GPU without MIG
    acquire(client, TWO)
    assert watts(fake) == [700.0, 300.0]


def test_a_gpu_that_is_lost_under_a_lease_is_unavailable_until_it_is_back(fake, client, agent):
    lease = acquire(client)["lease"]
    fake.fail("*", GPU_IS_LOST, device=0)
    wait_for(lambda: client.renew(lease)["gpus"][0]["state"] == "unavailable")
    (gpu,) = client.renew(lease)["gpus"]
    assert "fallen off the bus" in gpu["reason"]
    assert gpu["limit_watts"] is None
    client.release(lease)
    wait_for(lambda: any(one["event"] == "not put back" for one in events(agent)))
    assert agent.state.exists()
    fake.heal()
    wait_for(lambda: watts(fake) == [700.0, 700.0])
    wait_for(lambda: not agent.state.exists())


def test_unknown_gpus_are_named(client):
    with pytest.raises(ActuationRefused, match=rf"GPU-none: no such GPU .*{ONE}"):
        acquire(client, "GPU-none")


def test_bad_options_are_named_and_change_nothing(fake, tmp_path):
    for options, words in (
        (["--group", "no-such-group"], "--group no-such-group: no such group on this host"),
        (["--floor-watts", "much"], "'much' is not a number of watts"),
        (["--floor-watts", "500", "--ceiling-watts", "400"], "--floor-watts is above"),
        (["--budget-file", str(tmp_path / "none")], "No such file"),
    ):
        agent = AgentProcess(tmp_path / "bad", *options).start(wait=False)
        assert agent.process.wait(timeout=20) in {1, 2}
        assert words in agent.errors.read_text()
        assert not agent.path.exists()


def test_without_a_driver_there_is_no_agent(fake, tmp_path):
    fake.fail("nvmlInit", 9)
    agent = AgentProcess(tmp_path / "none").start(wait=False)
    assert agent.process.wait(timeout=20) == 1
    assert "driver is not loaded" in agent.errors.read_text()


# ---- clocks


def test_locked_clocks_belong_to_a_lease_as_well(fake, client, agent):
    gpu = fake.state.dev[0]
    lease = client.acquire([ONE], watts=None, clock_mhz=1200, ttl_s=30.0, holder="r")["lease"]
    assert (gpu.lock_max, gpu.limit_mw) == (1200, 700_000)
    client.renew(lease, clock_mhz=1000)
    wait_for(lambda: gpu.lock_max == 1000)
    agent.kill()
    agent.start()
    assert gpu.lock_max == 0
    again = agent.client()
    lease = again.acquire([ONE], watts=400.0, clock_mhz=1200, ttl_s=30.0, holder="r")["lease"]
    wait_for(lambda: (gpu.lock_max, gpu.limit_mw) == (1200, 400_000))
    again.renew(lease, watts=400.0)
    wait_for(lambda: gpu.lock_max == 0)
    again.release(lease)
    wait_for(lambda: gpu.limit_mw == 700_000)


@pytest.mark.parametrize("clock_mhz", [1, 209, 1981, 10**6])
def test_a_clock_that_the_gpu_does_not_have_is_refused_with_the_range(fake, client, clock_mhz):
    with pytest.raises(ActuationRefused, match="allowed here: 210 to 1980 MHz"):
        client.acquire([ONE], watts=300.0, clock_mhz=clock_mhz, ttl_s=30.0, holder="r")
    assert (fake.state.dev[0].lock_max, watts(fake)) == (0, [700.0, 700.0])


def test_whether_a_limit_binds_is_told(fake, client):
    lease = acquire(client)["lease"]
    fake.state.dev[0].util = 100
    wait_for(lambda: client.renew(lease)["gpus"][0]["power_capped"] is True)
    fake.state.dev[0].util = 10
    wait_for(lambda: client.renew(lease)["gpus"][0]["power_capped"] is False)
    assert client.renew(lease)["gpus"][0]["max_clock_mhz"] == 1980


# ---- who may


def test_the_socket_is_for_its_group(agent):
    assert agent.path.stat().st_mode & 0o777 == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_others_are_refused_even_where_the_socket_is_open_to_all(fake, agent):
    agent.path.chmod(0o666)
    for folder in agent.path.parents:
        if folder.stat().st_uid == os.geteuid() and len(folder.parts) > 2:
            folder.chmod(folder.stat().st_mode | 0o711)
    code = """
import os, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from serve_app.power_agent.client import AgentClient
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    print(AgentClient(Path(sys.argv[1])).status())
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [sys.executable, "-c", code, str(agent.path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "not in the group of this socket" in done.stdout + done.stderr
    assert any(one.get("why") == "not in the socket's group" for one in events(agent))


# ---- people


def test_the_status_is_told_to_people(fake, client, agent):
    acquire(client, holder="replica llm#1")
    command = [sys.executable, "-m", "serve_app.power_agent", "--status", "--socket"]
    done = subprocess.run(
        [*command, str(agent.path)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 0
    assert "limit 300 W, enforced 300 W; found 700 W; held by replica llm#1" in done.stdout
    assert "limits sum up to 1000 W; no node budget" in done.stdout
    pinged = [*command[:3], "--ping", "--socket", str(agent.path)]
    assert subprocess.run(pinged, check=False, timeout=30).returncode == 0
    done = subprocess.run([*command, "/nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is `jouleserve power-agent` running?" in done.stderr
