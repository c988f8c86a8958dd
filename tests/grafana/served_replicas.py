"""An application's scrape URL without Ray: two replicas record through the real accountant,
recorder and ledger state, and a small server shows the exposition."""

import itertools
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

from constant_draw import ConstantDraw
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from policies.core.types import (
    SLO,
    Decision,
    Mode,
    OperatingPoint,
    Prediction,
    Reason,
    ReplicaObservation,
)
from policies.model.bias import Bias
from policies.model.drift import Assessment, Verdict
from policies.model.online import Correction, CorrectionState
from serve_app.accounting import EnergyAccountant
from serve_app.actuators.base import LimitState
from serve_app.engine.step_link import StepMessage, StepSender
from serve_app.engine.tap import FinishedRequest
from serve_app.ledger import LedgerState
from serve_app.meters import EnergyMeter, Source
from serve_app.meters.base import Anomaly
from serve_app.meters.opening import MeterOptions
from serve_app.observers.fleet_metrics import FLEET_LABELS, FLEET_METRICS
from serve_app.observers.gate_metrics import GATE_LABELS, GATE_METRICS
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder
from serve_app.push import Push, families_of

LABELS = {"application": "llm", "deployment": "EnergyLLMServer:m", "model": "m"}
_SLO = SLO(ttft_s=1.0, tpot_s=0.1, percentile=0.99)
_PRESENT = OperatingPoint(num_replicas=1, max_num_active_seqs=64, power_limit_watts=500.0)
_CHOSEN = replace(_PRESENT, max_num_active_seqs=32, power_limit_watts=400.0)
_COSTS = Prediction(
    ttft_s=0.4, tpot_s=0.03, draw_watts=300.0, joules_per_request=12.0, utilization_ratio=0.5
)
_LEARNED = CorrectionState(
    profile="p",
    step_time=Bias(noise_ratio=0.05, ratio=1.1, windows=400, gated=2, ignored=1, cusum_up=0.5),
    energy=Bias(noise_ratio=0.05, ratio=0.9, windows=400, gated=1, ignored=1),
)
_CORRECTION = Correction(step_time_ratio=1.1, energy_ratio=0.9)
_LIMIT = LimitState(
    held=True, capped=True, max_watts=450.0, asked_watts=400.0, limit_watts=400.0,
    enforced_watts=400.0,
)  # fmt: skip


class CheckedGpus(ConstantDraw):
    """GPUs with a second sensor, one of which stalls once per reading."""

    def _read(self, device, watts, now_s):
        self.faults[device.id] = {Anomaly.STALL: int(now_s - self._opened_s) + 1}
        return replace(super()._read(device, watts, now_s), cross_check_ratio=1.01)


class ServedReplica:
    """One replica's meter, books and metrics. `turn` is a second of its life, in less."""

    def __init__(self, name, no_powercap):
        clock = time.monotonic
        gpus = CheckedGpus(clock, [("gpu:0", 300.0), ("gpu:1", 100.0)], name="gpus", idle=140.0)
        cpu = ConstantDraw(clock, [("cpu:0", 50.0)], name="cpu", source=Source.ESTIMATED)
        options = MeterOptions(powercap_root=no_powercap)
        self.accountant = EnergyAccountant(EnergyMeter([gpus, "rapl", cpu], options=options))
        self.sender = StepSender(self.accountant.receiver.path)
        self.recorder = Recorder(MetricSet({**LABELS, "replica": name}))
        self.name, self._handles = name, itertools.count()

    def close(self):
        self.accountant.close()

    def push(self):
        """What it tells the ledger after a turn."""
        self.turn()
        return Push(
            deployment=LABELS["deployment"],
            replica=self.name,
            model=LABELS["model"],
            families=families_of(self.recorder.metrics.registry),
            books={},
            knobs={},
        )

    def turn(self):
        recorder, metrics = self.recorder, self.recorder.metrics
        for ttft_s, outcome in ((0.2, "stop"), (0.3, "length"), (2.0, "stop")):
            recorder.finished(*self._request(ttft_s, outcome), _SLO)
        recorder.refused()
        recorder.itl([0.03, 0.04])
        recorder.targets(_SLO, 1000.0, Mode.ACTIVE)
        recorder.tick(self.accountant, self._seen())
        for reason, chosen in ((Reason.DWELL, _PRESENT), (Reason.CHEAPEST_FEASIBLE, _CHOSEN)):
            decision = Decision(
                time_s=0.0, policy="energy_slo", reason=reason, present=_PRESENT, proposed=_CHOSEN,
                chosen=chosen, predicted_chosen=_COSTS,
            )  # fmt: skip
            recorder.decision(decision, 32)
        recorder.limit(_LIMIT, inert=False)
        learned = replace(
            _LEARNED, step_time=replace(_LEARNED.step_time, gated=next(self._handles))
        )
        recorder.model(learned, _CORRECTION, Assessment(verdict=Verdict.FITS, reason="fits"), 0.02)
        recorder.failed("report")
        metrics.inc("jouleserve_request_log_rows", 3, fate="written")
        metrics.inc("jouleserve_request_log_rows", fate="dropped")
        metrics.inc("jouleserve_request_log_errors")

    def _request(self, ttft_s, outcome):
        """One request through the engine's steps and the books."""
        handle = next(self._handles)
        name = f"chatcmpl-{handle}"
        send = self.sender.send
        now_s = time.monotonic()
        send(StepMessage(kind="a", time_s=now_s, names=[(handle, name)], shares=[handle, 8, 0, 0]))
        send(StepMessage(kind="b", time_s=now_s, shares=[handle, 8, 1, 9]))
        time.sleep(0.005)
        send(StepMessage(kind="e", time_s=time.monotonic(), finished=[handle]))
        self.accountant.close_window()
        request = FinishedRequest(
            request_id=name, outcome=outcome, ttft_s=ttft_s, tpot_s=0.05, e2e_s=1.0, queue_s=0.0,
            prompt_tokens=8, output_tokens=16, cached_tokens=0,
        )  # fmt: skip
        return request, self.accountant.finish(name)

    def _seen(self):
        return ReplicaObservation(
            replica=self.name, time_s=time.monotonic(), num_running=3.0, num_waiting=1.0,
            arrival_rate_per_s=2.0, max_num_active_seqs=32, power_limit_watts=400.0,
        )  # fmt: skip


class ServedFleet:
    """What a fleet tick and the door of an ingress count, made from the tables of their metrics."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self._made = [self._metric(spec, FLEET_LABELS) for spec in FLEET_METRICS]
        self._made += [self._metric(spec, GATE_LABELS) for spec in GATE_METRICS]

    def _metric(self, spec, common):
        labels = (*common, *spec.labels)
        kind = {"counter": Counter, "gauge": Gauge}[spec.kind]
        values = {
            name: LABELS.get(
                name, {"moved": "true", "reason": "dwell", "replica": "ingress"}.get(name)
            )
            for name in labels
        }
        return kind(spec.name, spec.help, labels, registry=self.registry).labels(**values)

    def exposition(self):
        for metric in self._made:
            metric.inc()
        return generate_latest(self.registry)


class Application:
    """Two replicas, their ledger, and the fleet."""

    def __init__(self, no_powercap):
        self.replicas = [ServedReplica(name, no_powercap) for name in ("a", "b")]
        self.ledger, self.fleet = LedgerState(), ServedFleet()

    def exposition(self):
        for replica in self.replicas:
            self.ledger.push(replica.push(), time.monotonic())
        return self.ledger.exposition(time.monotonic()) + self.fleet.exposition()

    def close(self):
        for replica in self.replicas:
            replica.close()


@contextmanager
def scrape_url(application):
    """Serve its exposition on a port of the loopback; every scrape finds it a turn older."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(application.exposition())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
