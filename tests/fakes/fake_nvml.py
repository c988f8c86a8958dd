"""The test's side of the fake NVML: builds the library and edits its shared state.

    library_dir = build(tmp_path)             # then LD_LIBRARY_PATH=library_dir in a subprocess
    fake = FakeNvml.create(tmp_path / "state", gpus=2)   # then FAKE_NVML_STATE=that path
    fake.state.dev[0].util = 90

nvidia-ml-py does a plain dlopen of libnvidia-ml.so.1, so the unmodified package talks to it; so do
Ray (which then counts the GPUs) and GPU telemetry tools. `virtual_ns` is a clock that the test
moves; set it before the first call, since a jump from the real clock is integrated as energy.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
MAX_DEVICES, MAX_FAILURES, MAX_HISTORY, MAGIC = 16, 32, 64, 0x4C4D564E
GPU_IS_LOST, UNKNOWN, NO_PERMISSION, NOT_SUPPORTED = 15, 999, 4, 3
_u32, _i32, _u64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64


class _Point(ctypes.Structure):
    _fields_ = [("ns", _u64), ("used_mj", ctypes.c_double)]


class _Device(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 80),
        ("busid", ctypes.c_char * 32),
        *[(name, _u32) for name in ("util", "mem_util", "temp", "mig_mode")],
        *[(f"{name}_mw", _u32) for name in ("idle", "peak", "limit", "min", "max", "default")],
        *[(name, _u32) for name in ("sm_max", "mem_clk", "lock_min", "lock_max")],
        ("power_override_mw", ctypes.c_int64),
        ("mem_total", _u64),
        ("mem_used", _u64),
        ("energy_mj", ctypes.c_double),
        ("last_ns", _u64),
        *[(name, _u32) for name in ("n_set_limit", "n_set_clock")],
        *[(name, _u32) for name in ("energy_frozen", "power_permille", "power_mean_ms")],
        *[(name, _u32) for name in ("no_instant", "arch", "cc")],
        *[(name, _u32) for name in ("n_compute", "n_mps", "compute_mode", "n_history")],
        ("oob_limit_mw", _u32),
        ("used_mj", ctypes.c_double),
        ("history", _Point * MAX_HISTORY),
    ]


class _Failure(ctypes.Structure):
    _fields_ = [
        ("fn", ctypes.c_char * 64),
        *[(name, _i32) for name in ("rc", "dev", "left", "pad")],
    ]


class _State(ctypes.Structure):
    _fields_ = [
        *[(name, _u32) for name in ("magic", "ndev", "set_mode", "energy_supported")],
        ("virtual_ns", _u64),
        ("driver", ctypes.c_char * 32),
        ("fail", _Failure * MAX_FAILURES),
        ("dev", _Device * MAX_DEVICES),
    ]


def build(folder: Path) -> Path:
    """Compile libnvidia-ml.so.1 into `folder` with gcc (under a second); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "libnvidia-ml.so.1"
    flags = "-shared -fPIC -O2 -Wall -Wextra -Werror -pthread -fvisibility=hidden"
    soname = "-Wl,-soname,libnvidia-ml.so.1"
    sources = [str(HERE / "fake_nvml.c"), str(HERE / "fake_nvml_api.c")]
    subprocess.run(["gcc", *flags.split(), soname, "-o", str(target), *sources, "-lm"], check=True)
    return folder


class FakeNvml:
    """A handle on the state file; changes are seen by the library at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self.state = _State.from_buffer(self._map)

    @classmethod
    def create(cls, path: Path, *, gpus: int, virtual_ns: int = 0) -> FakeNvml:
        """A new state with `gpus` idle H100s: 70 W idle, 700 W peak and limit (200-700 W)."""
        path.write_bytes(bytes(ctypes.sizeof(_State)))
        os.chmod(path, 0o666)
        fake = cls(path)
        state = fake.state
        state.magic, state.ndev, state.driver = MAGIC, gpus, b"580.159.04"
        state.energy_supported = state.set_mode = 1
        state.virtual_ns = virtual_ns
        for index in range(gpus):
            device = state.dev[index]
            device.name = b"NVIDIA H100 80GB HBM3"
            device.uuid = uuid_of(index).encode()
            device.busid = f"00000000:{index + 1:02X}:00.0".encode()
            device.temp, device.idle_mw, device.peak_mw = 35, 70_000, 700_000
            device.limit_mw = device.max_mw = device.default_mw = 700_000
            device.min_mw, device.sm_max, device.mem_clk = 200_000, 1980, 2619
            device.power_override_mw, device.mem_total = -1, 80 << 30
        return fake

    def advance(self, seconds: float) -> None:
        """Move the virtual clock."""
        self.state.virtual_ns += round(seconds * 1e9)

    def fail(self, function: str, code: int, *, device: int = -1, times: int = -1) -> None:
        """Make `function` ("*": every call on a device) return `code`, for ever or some times."""
        for failure in self.state.fail:
            if not failure.fn or not failure.left:
                failure.rc, failure.dev, failure.left = code, device, times
                failure.fn = function.encode()
                return
        raise RuntimeError("the failure table is full")

    def heal(self) -> None:
        """Forget all planned failures."""
        for failure in self.state.fail:
            failure.left = 0


def uuid_of(index: int) -> str:
    """The UUID of the fake GPU `index`: unique from its first characters on."""
    return f"GPU-{index:08x}-0000-0000-0000-{index:012d}"
