"""A fake GPU under a load, in simulated time: a clock that turns the fake's sensors as it passes."""

from __future__ import annotations

IDLE_WATTS, BUSY_WATTS = 70.0, 500.0
_GRAIN_S = 0.001


class SimulatedLoad:
    """A load and a clock at once. The power value is a mean over `window_s`, counter and power move
    every `update_s`. The fake's own clock stands still, so that it adds no energy of its own."""

    description = "simulated"

    def __init__(self, fake, *, window_s, update_s, gain=1.0):
        assert fake.state.virtual_ns, "the fake's clock must stand still"
        self.true_joules = 0.0
        self.closed = False
        self.fake = fake
        self._device = fake.state.dev[0]
        self._gain = gain
        self._grains = 0
        self._window = round(window_s / _GRAIN_S)
        self._update = round(update_s / _GRAIN_S)
        self._watts = [IDLE_WATTS] * self._window  # the last ones, a ring
        self._sum = IDLE_WATTS * self._window
        self._running = False
        self._device.power_override_mw = round(IDLE_WATTS * gain * 1e3)

    # ---- the clock

    def now_s(self):
        return self._grains * _GRAIN_S

    def sleep(self, seconds):
        for _ in range(max(1, round(seconds / _GRAIN_S))):
            self._pass()

    def _pass(self):
        watts = BUSY_WATTS if self._running else IDLE_WATTS
        slot = self._grains % self._window
        self._sum += watts - self._watts[slot]
        self._watts[slot] = watts
        self.true_joules += watts * _GRAIN_S
        self._grains += 1
        if self._grains % self._update == 0:
            self._device.energy_mj = self.true_joules * 1e3
            self._device.power_override_mw = round(self._sum / self._window * self._gain * 1e3)

    # ---- the load

    def start(self):
        self._running = True
        self.sleep(2.0)
        self._running = False

    def on(self):
        self._running = True

    def off(self):
        self._running = False

    def check(self):
        pass

    def close(self):
        self.off()
        self.closed = True
