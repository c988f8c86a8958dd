"""Power limits through zeusd, the daemon of the Zeus project, where that is what a node runs.

Routes as its HTTP API reference has them (https://ml.energy/zeus/zeusd/api/, zeusd 0.5). It knows
no leases: what was found is put back when the replica closes; where it is killed, ours stays.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from policies.core.errors import ActuationError, ActuationRefused, MeterError
from serve_app.actuators.base import Ask, LimitState, inside, state_of
from serve_app.actuators.power_limit import LOWEST_MHZ, same
from serve_app.nvml_library import Nvml

SOCKET = Path("/run/zeusd/zeusd.sock")
TIMEOUT_S = 1.0


class ZeusdLimits:
    """A `PowerActuator` over zeusd's socket; it needs zeusd's `gpu-control` and `gpu-read`."""

    name = "zeusd"

    def __init__(self, uuids: Sequence[str], *, path: Path = SOCKET) -> None:
        self._uuids, self._path = tuple(uuids), path
        self._indices: dict[str, int] = {}
        self._found: dict[str, float] = {}
        self._set_watts: float | None = None
        self._clock_mhz: int | None = None
        self._last = LimitState()

    def ask(self, ask: Ask) -> LimitState:
        """As `PowerActuator`."""
        reason = None
        rows: Sequence[Mapping[str, Any]] = self._last.gpus
        try:
            rows = self._rows()
            ask = inside(ask, state_of(rows, ask, held=False))
            self._bring(ask, rows)
            rows = self._rows()
        except (ActuationError, MeterError, OSError, http.client.HTTPException) as error:
            reason = f"zeusd: {error}"
        self._last = state_of(rows, ask, held=bool(self._found), reason=reason)
        return self._last

    def close(self) -> None:
        """As `PowerActuator`."""
        self.ask(Ask())

    def _bring(self, ask: Ask, rows: Sequence[Any]) -> None:
        if ask.watts is None:
            for uuid, watts in self._found.items():
                self._command("set_power_limit", [uuid], power_limit_mw=round(watts * 1e3))
            self._found, self._set_watts = {}, None
        elif ask.watts != self._set_watts:
            self._found = self._found or {row["uuid"]: row["limit_watts"] for row in rows}
            milliwatts = round(ask.watts * 1e3)
            self._command("set_power_limit", self._uuids, power_limit_mw=milliwatts)
            self._set_watts = ask.watts
        if ask.clock_mhz != self._clock_mhz:
            if ask.clock_mhz is None:
                self._command("reset_gpu_locked_clocks", self._uuids)
            else:
                top = ask.clock_mhz
                clocks = {"min_clock_mhz": min(LOWEST_MHZ, top), "max_clock_mhz": top}
                self._command("set_gpu_locked_clocks", self._uuids, **clocks)
            self._clock_mhz = ask.clock_mhz

    def _rows(self) -> list[dict[str, Any]]:
        """Each GPU, in the words of the power agent. zeusd tells no enforced limit."""
        limits = self._get("get_power_limit")
        spans = self._get("get_power_limit_constraints")
        rows = []
        for uuid in self._uuids:
            key = str(self._index(uuid))
            watts = float(limits[key]["power_limit_mw"]) / 1e3
            ours = self._set_watts
            high = float(spans[key]["max_power_limit_mw"]) / 1e3
            rows.append(
                {
                    "uuid": uuid,
                    "reason": None,
                    "min_watts": float(spans[key]["min_power_limit_mw"]) / 1e3,
                    "allowed_watts": high,
                    "limit_watts": watts,
                    "enforced_watts": watts,
                    "found_watts": self._found.get(uuid),
                    "drift_watts": watts if ours is not None and not same(watts, ours) else None,
                    "clock_mhz": self._clock_mhz,
                }
            )
        return rows

    def _index(self, uuid: str) -> int:
        """As zeusd numbers GPUs: like NVML. ActuationError, MeterError."""
        if uuid not in self._indices:
            nvml = Nvml()
            try:
                handle = nvml.call(nvml.api.nvmlDeviceGetHandleByUUID, uuid.encode())
                self._indices[uuid] = nvml.call(nvml.api.nvmlDeviceGetIndex, handle)
            finally:
                nvml.close()
        return self._indices[uuid]

    def _get(self, route: str) -> dict[str, Any]:
        ids = ",".join(str(self._index(uuid)) for uuid in self._uuids)
        return dict(self._http("GET", route, {"gpu_ids": ids}) or {})

    def _command(self, route: str, uuids: Sequence[str], **values: int) -> None:
        ids = ",".join(str(self._index(uuid)) for uuid in uuids)
        self._http("POST", route, {"gpu_ids": ids, **values, "block": "true"})

    def _http(self, method: str, route: str, query: dict[str, Any]) -> Any:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, f"/gpu/{route}?{urlencode(query, safe=',')}")
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status >= 400:
            text = f"{route}: {answer.status} {body.decode(errors='replace')[:200]}"
            raise ActuationRefused(text)
        try:
            return json.loads(body) if body else None
        except ValueError as error:
            raise ActuationError(f"{route}: the answer is no JSON") from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
