"""A service on fake GPUs, and what a test does to them: their power, their loss, their truth."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from running_service import DEPLOYMENT, Service

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))

from fake_nvml import GPU_IS_LOST, FakeNvml, build

from serve_app.bench.options import BenchOptions
from serve_app.bench.preflight import Progress
from serve_app.bench.runner import run_bench

# Watts: what a GPU draws from one step to the next while a replica has it; idle among them.
LEVELS = (420, 180, 650, 70, 300, 540, 110)
STEP_S = 2.5


class FakeGpus:
    """Some fake GPUs that draw nothing until told to."""

    def __init__(self, folder: Path, count: int) -> None:
        self.fake = FakeNvml.create(folder / "nvml-state", gpus=count)
        self.library = build(folder / "nvml")
        self.uuids = [self.fake.state.dev[i].uuid.decode() for i in range(count)]
        for index in range(count):
            self.draw(index, 0)

    @property
    def environment(self):
        return {"LD_LIBRARY_PATH": str(self.library), "FAKE_NVML_STATE": str(self.fake.path)}

    def draw(self, index, watts):
        """From the library's next call on; what it has not integrated yet counts as this too."""
        self.fake.state.dev[index].power_override_mw = round(watts * 1e3)

    def watts(self, index):
        return self.fake.state.dev[index].power_override_mw / 1e3

    def joules(self, index):
        """What the GPU has used up to this moment, by the fake's own account."""
        device = self.fake.state.dev[index]
        if not device.last_ns:
            return 0.0
        open_s = max(0, time.monotonic_ns() - device.last_ns) / 1e9
        return device.used_mj / 1e3 + self.watts(index) * open_s

    def limits(self):
        return [self.fake.state.dev[index].limit_mw / 1e3 for index in range(len(self.uuids))]

    def lose(self, index):
        """The GPU falls off the bus for good; returns what it had used, and draws no more."""
        self.fake.fail("*", GPU_IS_LOST, device=index)
        used = self.joules(index)
        self.draw(index, 0)
        return used


class PowerPlay(threading.Thread):
    """Walks each GPU that is `live` through LEVELS, each from a step of its own."""

    def __init__(self, gpus: FakeGpus) -> None:
        super().__init__(daemon=True)
        self.gpus = gpus
        self.live = set()
        self.held = {}  # index -> watts, in place of the walk
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self):
        step = 0
        while not self._over.wait(STEP_S):
            step += 1
            with self._lock:
                for index in self.live:
                    watts = self.held.get(index, LEVELS[(step + 2 * index) % len(LEVELS)])
                    self.gpus.draw(index, watts)

    def begin(self, index):
        with self._lock:
            self.live.add(index)
            self.gpus.draw(index, LEVELS[2 * index % len(LEVELS)])

    def hold(self, index, watts):
        with self._lock:
            self.held[index] = watts
            self.gpus.draw(index, watts)

    def end(self, index):
        with self._lock:
            self.live.discard(index)
            self.gpus.draw(index, 0)

    def lose(self, index):
        with self._lock:
            self.live.discard(index)
            return self.gpus.lose(index)

    def stop(self):
        self._over.set()
        for index in list(self.live):
            self.end(index)
        self.join()


@dataclass(frozen=True)
class Sample:
    """Fleet joules of the GPUs as told between two moments, and what the fakes had used by the
    later one."""

    begin_s: float
    end_s: float
    told: float
    used: float


class Watch(threading.Thread):
    """Compares the ledger with the fakes, again and again."""

    def __init__(self, service: Service, gpus: FakeGpus) -> None:
        super().__init__(daemon=True)
        self.service, self.gpus = service, gpus
        self.samples = []
        self.error = None
        self._over = threading.Event()

    def run(self):
        try:
            while not self._over.wait(0.4):
                begin_s = time.monotonic()
                told = gpu_joules(self.service)
                used = math.fsum(self.gpus.joules(i) for i in range(len(self.gpus.uuids)))
                self.samples.append(Sample(begin_s, time.monotonic(), told, used))
        except Exception as error:
            self.error = error

    def stop(self):
        self._over.set()
        self.join()
        if self.error is not None:
            raise self.error


def gpu_joules(service):
    return service.energy()["meter_joules_by_kind"]["gpu"]


def gpu_rows(service):
    """Replica → its GPU's row, of the replicas that are alive."""
    rows = {}
    for replica in service.energy()["replicas"]:
        (row,) = [device for device in replica["devices"] if device["kind"] == "gpu"]
        rows[replica["replica"]] = row
    return rows


def replica_pids(service):
    """Replica → pid, by Serve's own account."""
    deployments = service.status()["deployments"]
    replicas = deployments[DEPLOYMENT]["replicas"]
    return {one["replica_id"]: one["pid"] for one in replicas if one["state"] == "RUNNING"}


def visible_to(pid):
    """CUDA_VISIBLE_DEVICES as Ray set it for a replica, from its engine's environment: the replica
    itself had it set when it ran already."""
    seen = set()
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            seen.add(child.environ().get("CUDA_VISIBLE_DEVICES"))
    (visible,) = seen - {None}  # a process that sets its title may have lost its environment
    return visible


def two_replicas_with_a_gpu_each(config):
    """serve_config.yaml with two replicas whose bundle holds one GPU."""
    args = config["applications"][0]["args"]
    (llm,) = args["llm_configs"]
    llm["deployment_config"].pop("autoscaling_config")
    llm["deployment_config"] |= {
        "num_replicas": 2,
        "ray_actor_options": {"num_cpus": 0.25, "num_gpus": 1},
    }
    args["energy"]["meter"] = {"backends": ["nvml", "estimated"], "interval_s": 0.5}


class Load(threading.Thread):
    """The bench beside the test. `start_s`: of its run, on the clock of time.monotonic, which on
    Linux is perf_counter's too."""

    def __init__(self, options: BenchOptions) -> None:
        super().__init__(daemon=True)
        self._options = options
        self._progress = Progress()
        self._first_sent_s = math.inf
        self.result = None

    def run(self):
        self.result = run_bench(self._options, self._progress)

    def wait_until_sending(self):
        while not self._progress.sent:
            assert self.is_alive()
            time.sleep(0.01)
        self._first_sent_s = time.monotonic()

    def finish(self):
        """The records, once all are answered or have failed."""
        self.join()
        assert self.result is not None
        return self.result.records

    @property
    def start_s(self):
        return self._first_sent_s - self.result.records[0].sent_s
