"""Power limits of fake GPUs, run by test_power_limit.py in a process of its own whose
LD_LIBRARY_PATH has the fake NVML library. Unmodified nvidia-ml-py; nothing is patched."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_nvml import GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, uuid_of

from policies.core.errors import ActuationError, ActuationRefused
from serve_app.actuators.limit_record import Found, LimitRecord, read_record
from serve_app.actuators.limited_gpus import LimitedGpus

SET = "nvmlDeviceSetPowerManagementLimit"
HOLDER = Path(__file__).with_name("holder.py")
BOTH = (uuid_of(0), uuid_of(1))


class Clock:
    """Counts the seconds slept; `then` is done while the limit settles."""

    def __init__(self):
        self.slept_s = 0.0
        self.then = lambda: None

    def sleep(self, seconds):
        self.slept_s += seconds
        self.then()


@pytest.fixture
def said():
    return []


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def state_file(tmp_path):
    return tmp_path / "run" / "limits.json"


@pytest.fixture
def limited(said, clock, state_file):
    def make(*uuids):
        return LimitedGpus(uuids or BOTH, say=said.append, state_file=state_file, sleep=clock.sleep)

    return make


def watts(fake):
    return [fake.state.dev[index].limit_mw / 1e3 for index in range(2)]


def times_set(fake):
    return [fake.state.dev[index].n_set_limit for index in range(2)]


# ---- set and put back


def test_all_gpus_move_together_and_come_back(fake, limited, clock, said, state_file):
    fake.state.dev[1].limit_mw = 650_000
    with limited() as gpus:
        assert watts(fake) == [700.0, 650.0]
        assert gpus.found_watts == {BOTH[0]: 700.0, BOTH[1]: 650.0}
        assert gpus.reference_watts == 650.0
        gpus.set(300.0)
        assert watts(fake) == [300.0, 300.0]
        gpus.confirm()
        gpus.set(450.5)
        assert watts(fake) == [450.5, 450.5]
        gpus.set(None)
        assert watts(fake) == [700.0, 650.0]
        assert said == []
        gpus.set(400.0)
        assert clock.slept_s == 4 * gpus.settle_s
    assert watts(fake) == [700.0, 650.0]
    assert [line.split(": ")[1] for line in said] == [
        "power limit put back to 700 W",
        "power limit put back to 650 W",
    ]
    assert read_record(state_file) is None


def test_one_gpu_alone_leaves_the_other(fake, limited):
    with limited(BOTH[1]) as gpus:
        gpus.set(300.0)
        assert watts(fake) == [700.0, 300.0]
    assert watts(fake) == [700.0, 700.0]
    assert times_set(fake)[0] == 0


def test_entering_changes_no_limit(fake, limited, said):
    with limited():
        assert watts(fake) == [700.0, 700.0]
    assert (watts(fake), said) == ([700.0, 700.0], [])


def test_what_is_found_and_asked_is_on_disk_while_the_limit_is_set(
    fake, limited, clock, state_file
):
    seen = []
    clock.then = lambda: seen.append(read_record(state_file))
    with limited() as gpus:
        assert read_record(state_file) == LimitRecord(gpus=dict.fromkeys(BOTH, Found(watts=700.0)))
        gpus.set(300.0)
        gpus.set(500.0)
    for record, asked in zip(seen, [(300.0,), (300.0, 500.0)], strict=True):
        assert record.gpus == dict.fromkeys(BOTH, Found(watts=700.0, asked_watts=asked))


def test_a_limit_that_cannot_be_recorded_is_not_set(fake, limited, state_file):
    with limited() as gpus:
        before = times_set(fake)
        draft = state_file.with_name(f".{state_file.name}.part")
        draft.mkdir()
        with pytest.raises(ActuationRefused, match="limits.json: Is a directory"):
            gpus.set(300.0)
        assert times_set(fake) == before
        draft.rmdir()


def test_an_exception_puts_the_limits_back(fake, limited):
    with pytest.raises(ZeroDivisionError), limited() as gpus:
        gpus.set(300.0)
        1 / 0
    assert watts(fake) == [700.0, 700.0]


def test_what_was_put_back_is_not_set_again(fake, limited):
    with limited() as gpus:
        gpus.set(300.0)
        gpus.restore()
        with pytest.raises(ActuationError, match="have been put back"):
            gpus.set(400.0)
    assert watts(fake) == [700.0, 700.0]


# ---- refusals


@pytest.mark.parametrize("asked", [199.0, 700.5, 0.0, -300.0, float("nan"), 300_000.0])
def test_watts_out_of_range_are_refused_with_the_range(fake, limited, asked):
    with limited() as gpus:
        before = times_set(fake)
        with pytest.raises(ActuationRefused, match=r"W; allowed: 200 to 700 W \(default 700\)"):
            gpus.set(asked)
        assert times_set(fake) == before


def test_the_range_of_every_gpu_counts(fake, limited):
    fake.state.dev[1].min_mw = 350_000
    with limited() as gpus:
        with pytest.raises(ActuationRefused, match=f"{BOTH[1]}: power limit 300 W; allowed: 350"):
            gpus.set(300.0)
        assert watts(fake) == [700.0, 700.0]


def test_a_process_that_may_not_set_is_told_before_anything_runs(fake, limited, state_file):
    fake.state.set_mode = 2
    with pytest.raises(
        ActuationRefused, match="may not set a power limit, root may: 700 W; allowed: 200"
    ):
        limited().__enter__()
    assert times_set(fake) == [0, 0]
    assert read_record(state_file) is None


def test_a_gpu_without_a_limit_to_set_is_refused(fake, limited):
    fake.fail(SET, NOT_SUPPORTED, device=0)
    with pytest.raises(ActuationRefused, match="not supported by this GPU"):
        limited().__enter__()


def test_a_gpu_that_is_not_there_is_refused(fake, limited):
    with pytest.raises(ActuationError, match="GPU-none: .*no such GPU"):
        limited("GPU-none").__enter__()
    with pytest.raises(ActuationRefused, match="no GPU is in scope"):
        LimitedGpus([], say=print).__enter__()


@pytest.mark.parametrize("code", [NO_PERMISSION, GPU_IS_LOST])
def test_where_the_second_gpu_fails_the_first_comes_back(fake, limited, said, state_file, code):
    with limited() as gpus:
        fake.fail(SET, code, device=1)
        with pytest.raises(ActuationError, match=BOTH[1]):
            gpus.set(300.0)
        assert watts(fake) == [700.0, 700.0]
    assert [BOTH[0] in line and "put back to 700" in line for line in said] == [True]
    assert read_record(state_file) is None


def test_a_failure_that_passes_is_tried_once_more(fake, limited):
    with limited() as gpus:
        fake.fail(SET, 999, device=1, times=1)
        gpus.set(300.0)
        assert watts(fake) == [300.0, 300.0]


# ---- others who set limits


def test_another_writer_is_an_error_and_is_not_fought(fake, limited, clock, said):
    def interfere():
        fake.state.dev[1].limit_mw = 450_000

    clock.then = interfere
    with pytest.raises(ActuationError, match="450 W where 300 W was set"), limited() as gpus:
        gpus.set(300.0)
    assert watts(fake) == [700.0, 450.0]
    assert "put back to 700 W" in said[0]
    assert "450 W, which another program has set: left so (found: 700 W)" in said[1]


def test_another_writer_between_two_limits_is_seen_before_the_second(fake, limited):
    with pytest.raises(ActuationError, match="another program"), limited() as gpus:
        gpus.set(300.0)
        fake.state.dev[0].limit_mw = 600_000
        gpus.set(400.0)
    assert watts(fake) == [600.0, 700.0]


def test_a_lower_limit_out_of_band_is_an_error(fake, limited, clock):
    def interfere():
        fake.state.dev[1].oob_limit_mw = 250_000

    clock.then = interfere
    with pytest.raises(ActuationError, match="250 W is enforced where 300"), limited() as gpus:
        gpus.set(300.0)
    assert watts(fake) == [700.0, 700.0]


def test_a_lower_limit_that_was_there_is_the_reference(fake, limited):
    fake.state.dev[0].oob_limit_mw = 500_000
    with limited() as gpus:
        assert gpus.reference_watts == 500.0
        gpus.set(300.0)
        gpus.set(None)
        with pytest.raises(ActuationError, match="500 W is enforced where 600 W was set"):
            gpus.set(600.0)


# ---- ends of all kinds


@pytest.fixture
def hold(fake, state_file):
    """Start a process that sets limits; returns it and the lines that it has said until "ready"."""
    started = []

    def start(how="wait", asked=300):
        command = [sys.executable, str(HOLDER), str(state_file), str(asked), how, *BOTH]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        lines = []
        for line in process.stdout:
            if line.strip() == "ready":
                break
            lines.append(line.strip())
        return process, lines

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_puts_the_limits_back_and_ends_the_process(fake, hold, state_file, number):
    process, _ = hold()
    assert watts(fake) == [300.0, 300.0]
    process.send_signal(number)
    lines = process.stdout.read().split("\n")
    status = process.wait(timeout=20)
    assert status == (-number if number == signal.SIGINT else 128 + number)
    assert watts(fake) == [700.0, 700.0]
    assert sum("put back to 700 W" in line for line in lines) == 2
    assert "left" in lines
    assert read_record(state_file) is None


def test_the_end_of_the_interpreter_puts_the_limits_back(fake, hold, state_file):
    process, lines = hold("exit")
    assert process.wait(timeout=20) == 7
    assert watts(fake) == [700.0, 700.0]
    assert sum("put back to 700 W" in line for line in lines) == 2
    assert read_record(state_file) is None


def test_a_forked_child_that_is_ended_puts_nothing_back(fake, hold):
    process, lines = hold("fork")
    assert lines == ["child", f"child ended with {int(signal.SIGTERM)}"]
    assert watts(fake) == [300.0, 300.0]
    process.terminate()
    process.wait(timeout=20)
    assert watts(fake) == [700.0, 700.0]


def test_a_killed_run_is_put_back_at_the_next_start(fake, hold, limited, said, state_file):
    process, _ = hold()
    process.kill()
    process.wait()
    assert watts(fake) == [300.0, 300.0]
    assert [one.watts for one in read_record(state_file).gpus.values()] == [700.0, 700.0]
    with limited(BOTH[0]) as gpus:
        assert "limits.json: a run that set power limits was killed" in said[0]
        assert sum("put back to 700 W" in line for line in said) == 2
        assert watts(fake) == [700.0, 700.0]
        assert gpus.found_watts == {BOTH[0]: 700.0}
    assert read_record(state_file) is None


def test_a_run_killed_between_two_gpus_is_put_back(fake, hold, limited):
    process, _ = hold()
    process.kill()
    process.wait()
    fake.state.dev[1].limit_mw = 700_000
    with limited():
        assert watts(fake) == [700.0, 700.0]


def test_what_another_has_set_after_the_kill_is_left(fake, hold, limited, said):
    process, _ = hold()
    process.kill()
    process.wait()
    fake.state.dev[1].limit_mw = 500_000
    with limited() as gpus:
        assert watts(fake) == [700.0, 500.0]
        assert "another program has set" in said[2]
        assert gpus.reference_watts == 500.0


def test_after_a_reboot_or_a_reload_of_the_driver_what_was_found_is_set_again(
    fake, hold, limited, said, state_file
):
    for index in range(2):
        fake.state.dev[index].limit_mw = 600_000
    process, _ = hold()
    process.kill()
    process.wait()
    for index in range(2):
        fake.state.dev[index].limit_mw = fake.state.dev[index].default_mw
    with limited() as gpus:
        assert set(gpus.found_watts.values()) == {600.0}
        assert watts(fake) == [600.0, 600.0]


def test_a_living_holder_is_not_disturbed(fake, hold, limited):
    process, _ = hold()
    with pytest.raises(ActuationRefused, match=f"process {process.pid} sets power limits"):
        limited().__enter__()
    assert watts(fake) == [300.0, 300.0]


def test_a_gpu_lost_on_the_way_stays_on_record_until_it_is_back(fake, limited, said, state_file):
    with (
        pytest.raises(ActuationError, match=f"not put back: {BOTH[1]}; .*keeps"),
        limited() as gpus,
    ):
        gpus.set(300.0)
        fake.fail("*", GPU_IS_LOST, device=1)
    assert watts(fake) == [700.0, 300.0]
    assert {u: one.watts for u, one in read_record(state_file).gpus.items()} == {BOTH[1]: 700.0}
    fake.heal()
    with limited():
        assert watts(fake) == [700.0, 700.0]


def test_the_first_failure_is_the_one_that_is_raised(fake, limited, said):
    with pytest.raises(ZeroDivisionError), limited() as gpus:
        gpus.set(300.0)
        fake.fail("*", GPU_IS_LOST, device=1)
        1 / 0
    assert any("not put back to 700 W" in line for line in said)
