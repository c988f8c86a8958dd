"""A fake GPU that works as the real engine does, and slows it down under a power limit.

The engine runs on CPU cores. Ten times a second its CPU time says how busy the GPU would be; the
fake's power model says what clock it would have under the limit in force; and for the rest of each
tenth the engine is stopped (SIGSTOP), so that its steps take as much longer. The draw is the fake's
own: idle + (peak - idle) x busy x (clock / highest clock)^3, cut at the limit.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import psutil

PERIOD_S = 0.1
ENGINE = "EngineCore"


class WorkingGpu(threading.Thread):
    """Couples one engine to the fake GPU `index` until `stop`. `samples`: (seconds, limit, draw,
    busy ratio, clock ratio), one per period."""

    def __init__(self, gpus, index, engine_pid) -> None:
        super().__init__(daemon=True)
        self.gpus, self.index = gpus, index
        self.engine = psutil.Process(engine_pid)
        self.samples = []
        self._over = threading.Event()
        self._began_s = time.monotonic()
        gpus.fake.state.dev[index].power_override_mw = -1

    def run(self):
        device = self.gpus.fake.state.dev[self.index]
        duty, used_s = 1.0, self._used_s()
        try:
            while not self._over.is_set():
                started_s = time.monotonic()
                time.sleep(PERIOD_S * duty)
                if duty < 1.0:
                    self.engine.send_signal(signal.SIGSTOP)
                    time.sleep(max(0.0, started_s + PERIOD_S - time.monotonic()))
                    self.engine.send_signal(signal.SIGCONT)
                now_s, used_before_s = time.monotonic(), used_s
                used_s = self._used_s()
                busy = min(1.0, (used_s - used_before_s) / ((now_s - started_s) * duty))
                device.util = round(100.0 * busy)
                duty = clock_ratio(device)
                self.samples.append(
                    (now_s - self._began_s, device.limit_mw / 1e3, draw_watts(device), busy, duty)
                )
        except psutil.NoSuchProcess:
            return
        finally:
            with contextlib.suppress(psutil.Error):
                self.engine.send_signal(signal.SIGCONT)
            device.util = 0

    def _used_s(self):
        times = self.engine.cpu_times()
        return times.user + times.system

    def stop(self):
        self._over.set()
        self.join()


def clock_ratio(device):
    """The fake's clock over its highest, as fake_nvml.c has it."""
    if not device.util:
        return 1.0
    highest = device.sm_max
    clock = min(device.lock_max or highest, highest)
    span = (device.peak_mw - device.idle_mw) * device.util / 100.0
    limit = device.limit_mw
    if limit < device.idle_mw + span * (clock / highest) ** 3:
        clock = highest * max(0.001, (limit - device.idle_mw) / span) ** (1.0 / 3.0)
    return min(1.0, clock / highest)


def draw_watts(device):
    """The fake's draw, as fake_nvml.c has it."""
    span = (device.peak_mw - device.idle_mw) * device.util / 100.0
    return (device.idle_mw + span * clock_ratio(device) ** 3) / 1e3


def engine_of(pid):
    """The engine's process, of a replica's."""
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if ENGINE in child.name() or any(ENGINE in word for word in child.cmdline()):
                return child.pid
    return None
