"""What `jouleserve doctor` says of power limits, run by test_power_agent.py under the fake NVML
library."""

import pytest
from agents import running

from serve_app.doctor.findings import Level
from serve_app.doctor.host import Host
from serve_app.doctor.limits import limit_findings, may_administer
from serve_app.doctor.scope import Scope
from serve_app.settings import parse_energy

BARE = Host(container=None, virtual_machine=False, vendor="Intel", has_nvidia_driver=True)
POD = Host(container="kubernetes", virtual_machine=False, vendor="Intel", has_nvidia_driver=True)


def scope(actuator, **power):
    energy = parse_energy({"power": {"actuator": actuator, **power}}, "f")
    return Scope(energy=energy, environ={})


def found(actuator, host=BARE, **power):
    (one,) = limit_findings(scope(actuator, **power), host)
    return one


def test_an_agent_that_answers_is_as_it_should_be(fake, tmp_path):
    with running(tmp_path / "agent", "--budget-watts", "1200") as agent:
        one = found("agent", socket=str(agent.path))
        assert one.level is Level.OK
        assert "leases 2 of 2 GPUs within 1200 W" in one.text
        assert (
            "to use it: energy.power.actuator: agent" in found("none", socket=str(agent.path)).text
        )


def test_without_an_agent_it_is_told_how_to_have_one(fake, tmp_path):
    path = str(tmp_path / "none.sock")
    one = found("agent", socket=path)
    assert one.level is Level.PROBLEM
    assert "is `jouleserve power-agent` running?" in one.text
    assert any("power-agent --group jouleserve" in line for line in one.fix)
    assert found("none", socket=path).level is Level.NOTE
    assert any("kubectl apply" in line for line in found("agent", POD, socket=path).fix)


@pytest.mark.parametrize(("caps", "may"), [("000001ffffffffff", True), ("0000000000000400", False)])
def test_a_process_that_sets_limits_itself_needs_a_capability(fake, tmp_path, caps, may):
    status = tmp_path / "proc" / "self" / "status"
    status.parent.mkdir(parents=True)
    status.write_text(f"Name:\tpython\nCapEff:\t{caps}\n")
    assert may_administer(tmp_path) is may
    energy = parse_energy({"power": {"actuator": "nvml"}}, "f")
    (one,) = limit_findings(Scope(energy=energy, environ={}, root=tmp_path), BARE)
    assert one.level is (Level.OK if may else Level.PROBLEM)
    assert may_administer(tmp_path / "nowhere") is False


def test_zeusd_is_named_with_what_it_lacks(fake, tmp_path):
    assert found("zeusd", socket=str(tmp_path / "none")).level is Level.PROBLEM
    with running(tmp_path / "agent") as agent:  # any socket that may be opened
        one = found("zeusd", socket=str(agent.path))
    assert one.level is Level.WARNING
    assert "puts nothing back" in one.text


def test_where_there_is_no_gpu_there_is_nothing_to_say(fake):
    fake.state.ndev = 0
    assert limit_findings(scope("agent"), BARE) == []
