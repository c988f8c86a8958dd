"""A scripted back-end: devices with a fixed draw, from which a test may take some away."""

from serve_app.meters import Device, DeviceKind, DeviceReading, Source
from serve_app.meters.base import lossy


class ConstantDraw:
    """A back-end of devices with a fixed draw; devices in `lost` stop at the time they were lost."""

    def __init__(self, clock, watts, *, name="constant", source=Source.COUNTER, idle=None):
        self.name, self.source, self.idle = name, source, idle
        self._opened_s = clock()
        self.watts = {Device(id=i, kind=DeviceKind(i.split(":")[0]), name=i): w for i, w in watts}
        self.lost = {}
        self.faults = {}
        self.closed = 0

    def devices(self):
        return tuple(self.watts)

    def read(self, now_s):
        return tuple(self._read(device, watts, now_s) for device, watts in self.watts.items())

    def _read(self, device, watts, now_s):
        known_s = min(now_s, self.lost.get(device.id, now_s))
        joules = watts * (known_s - self._opened_s)
        gone = device.id in self.lost
        return DeviceReading(
            device=device,
            joules=None if gone else joules,
            source=Source.UNAVAILABLE if gone else self.source,
            reason="lost" if gone else None,
            draw_watts=None if gone else watts,
            last_known_joules=joules,
            last_known_s=known_s,
            anomalies=lossy(self.faults.get(device.id, {})),
            anomaly_counts=dict(self.faults.get(device.id, {})),
        )

    def idle_watts(self):
        return self.idle

    def close(self):
        self.closed += 1


def gpu_and_cpu(clock):
    gpus = ConstantDraw(clock, [("gpu:0", 300.0), ("gpu:1", 100.0)], name="gpus", idle=140.0)
    cpu = ConstantDraw(clock, [("cpu:0", 50.0)], name="cpu", source=Source.ESTIMATED, idle=10.0)
    return gpus, cpu
