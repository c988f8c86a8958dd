"""NVML cases: which GPUs are ours, and who shares them. Run by test_nvml.py under the fake library.

Unmodified nvidia-ml-py talks to the fake library here; nothing is patched.
"""

import pytest
from fake_nvml import GPU_IS_LOST, NO_PERMISSION, uuid_of

from policies.core.errors import ConfigError, MeterUnavailable
from serve_app.meters import EnergyMeter, MeterOptions


def ids(subject):
    return [device.id for device in subject.backend.devices()]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [("2,0", [2, 0]), (uuid_of(3), [3]), (uuid_of(1)[:12], [1]), ("1,-1,2", [1])],
)
def test_cuda_visible_devices_selects(rig, visible, expected):
    assert ids(rig(environ={"CUDA_VISIBLE_DEVICES": visible})) == [uuid_of(i) for i in expected]


@pytest.mark.parametrize("visible", ["", "-1", "0,0", "nonsense"])
def test_no_visible_gpu_is_unavailable(rig, visible):
    with pytest.raises(MeterUnavailable, match="CUDA_VISIBLE_DEVICES"):
        rig(environ={"CUDA_VISIBLE_DEVICES": visible})


def test_explicit_gpus_win_over_the_environment(rig):
    environ = {"CUDA_VISIBLE_DEVICES": "0"}
    assert ids(rig(environ=environ, gpus=("3",))) == [uuid_of(3)]
    with pytest.raises(ConfigError, match=r"meter\.gpus.*'9'"):
        rig(gpus=("9",))


def test_indices_on_a_host_of_two_models_need_pci_order(rig, fake):
    fake.state.dev[3].name = b"NVIDIA L4"
    environ = {"CUDA_VISIBLE_DEVICES": "3"}
    with pytest.raises(MeterUnavailable, match="PCI_BUS_ID"):
        rig(environ=environ)
    with pytest.raises(MeterUnavailable, match="PCI_BUS_ID"):
        rig(environ={**environ, "CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert ids(rig(environ={**environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})) == [uuid_of(3)]
    assert ids(rig(environ={"CUDA_VISIBLE_DEVICES": uuid_of(3)})) == [uuid_of(3)]


def test_a_gpu_that_is_lost_at_open_is_named(rig, fake):
    fake.fail("*", GPU_IS_LOST, device=1)
    readings = rig().read()
    assert [r.joules is None for r in readings] == [False, True, False, False]
    assert readings[1].device.id == "gpu-index-1"
    assert "bus" in readings[1].reason


def test_a_gpu_that_does_not_answer_makes_no_second_model(rig, fake):
    fake.fail("*", GPU_IS_LOST, device=1)
    readings = rig(environ={"CUDA_VISIBLE_DEVICES": "0,1"}).read()
    assert [r.joules is None for r in readings] == [False, True]


def test_a_uuid_that_no_answering_gpu_has_is_unavailable_and_not_left_out(rig, fake):
    fake.fail("*", GPU_IS_LOST, device=1)
    visible = f"{uuid_of(0)},{uuid_of(1)}"
    readings = rig(environ={"CUDA_VISIBLE_DEVICES": visible}).read()
    assert [r.device.id for r in readings] == [uuid_of(0), uuid_of(1)]
    assert [r.joules is None for r in readings] == [False, True]
    assert "does not answer" in readings[1].reason
    assert len(rig(gpus=(uuid_of(0), uuid_of(1))).read()) == 2


def test_mig_board_is_unavailable_with_its_reason(rig, fake):
    fake.state.dev[2].mig_mode = 1
    readings = rig().read()
    assert readings[2].joules is None
    assert "MIG" in readings[2].reason
    assert readings[3].joules is not None


def test_mig_instance_is_unavailable(rig):
    with pytest.raises(MeterUnavailable, match="MIG instance has no energy counter"):
        rig(environ={"CUDA_VISIBLE_DEVICES": f"MIG-{uuid_of(0)[4:]}"})
    subject = rig(gpus=("MIG-1", "1"))
    assert [r.joules is None for r in subject.read()] == [True, False]


@pytest.mark.parametrize(
    ("processes", "clients", "words"),
    [
        (0, 0, None),
        (1, 0, None),
        (3, 0, "3 processes share this GPU by time slicing"),
        (2, 1, None),  # one engine behind the MPS server
        (3, 2, "2 processes share this GPU through MPS"),
    ],
)
def test_a_shared_board_says_so_in_readings_and_windows(rig, fake, processes, clients, words):
    subject = rig(gpus=("0", "1"))
    fake.state.dev[1].n_compute, fake.state.dev[1].n_mps = processes, clients
    subject.backend.check_sharing()
    sharing = subject.backend.sharing()[uuid_of(1)]
    assert (sharing.num_processes, sharing.num_mps_clients) == (processes, clients)
    assert sharing.compute_mode == "default"
    alone, shared = subject.read()
    assert alone.caveat is None
    meter = EnergyMeter([subject.backend], clock=subject.clock)
    with meter.window() as window:
        subject.work(1.0)
    caveats = window.measurement.caveats
    if words is None:
        assert shared.caveat is None
        assert caveats == {}
    else:
        assert words in shared.caveat
        assert "whole board" in caveats[uuid_of(1)]


def test_who_shares_a_board_may_be_hidden(rig, fake):
    fake.fail("nvmlDeviceGetComputeRunningProcesses_v3", NO_PERMISSION)
    fake.state.dev[0].compute_mode = 3
    subject = rig(gpus=("0",))
    sharing = subject.backend.sharing()[uuid_of(0)]
    assert (sharing.compute_mode, sharing.num_processes) == ("exclusive_process", None)
    assert subject.read()[0].caveat is None


def test_fractions_of_a_board_add_up_to_it(rig, fake):
    parts = [
        rig(gpus=("0",), allotted_ratio=part, idle_watts_per_gpu=72.0) for part in (0.75, 0.25)
    ]
    fake.advance(10.0)
    for part in parts:
        part.clock.advance(10.0)
    readings = [part.read()[0] for part in parts]
    assert [r.joules for r in readings] == pytest.approx([525.0, 175.0])
    assert [r.whole_joules for r in readings] == pytest.approx([700.0, 700.0])
    assert [r.draw_watts for r in readings] == pytest.approx([52.5, 17.5])
    assert "0.25 of the board's joules" in readings[1].caveat
    assert [part.backend.idle_watts() for part in parts] == [54.0, 18.0]


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.5, float("nan")])
def test_an_impossible_fraction_is_refused(ratio):
    with pytest.raises(ConfigError, match="gpu_allotted_ratio"):
        EnergyMeter(["nvml"], options=MeterOptions(gpu_allotted_ratio=ratio))
