"""The GPUs of one replica under one power limit, for as long as a `with` block lasts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from policies.core.errors import ActuationError, ActuationRefused, MeterError
from serve_app.actuators.at_end import undone_at_end
from serve_app.actuators.limit_record import STATE_FILE, Found, LimitRecord, RecordFile
from serve_app.actuators.power_limit import (
    SAME_WATTS,
    GpuPowerLimit,
    Say,
    put_back,
    restore_left_over,
    same,
)
from serve_app.nvml_library import Nvml

SETTLE_S = 3.0  # a limit settles within 1 to 3 s, with an overshoot of about 9 W (MMBT)


class LimitedGpus:
    """The power limits of all GPUs of a replica, which move together. Use it in `with`.

    On entering, what a killed run left is put back first; then what is found is written to
    `state_file`, and written to the GPUs once: that changes nothing and shows whether this process
    may. What was found is put back on leaving, on an exception, on SIGHUP, SIGINT and SIGTERM, and
    at the interpreter's exit; `say` is told. After SIGKILL the next start does it.

    `uuids`: as the meter's devices have them. `settle_s`: how long a new limit takes to hold.
    `found_watts`, by UUID, and `reference_watts`, the lowest that was enforced on any of them:
    filled in on entering. Raises ActuationRefused: not permitted, or another process sets limits;
    ActuationError: NVML does not answer.
    """

    def __init__(
        self,
        uuids: Sequence[str],
        *,
        say: Say,
        state_file: Path = STATE_FILE,
        settle_s: float = SETTLE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.found_watts: Mapping[str, float] = {}
        self.reference_watts = 0.0
        self._uuids, self._say, self._state_file = uuids, say, state_file
        self.settle_s, self._sleep = settle_s, sleep
        self._stack = ExitStack()
        self._record: LimitRecord | None = None
        self._gpus: dict[str, GpuPowerLimit] = {}
        self._wanted: Mapping[str, float] = {}
        self._enforced: Mapping[str, float] = {}

    def __enter__(self) -> Self:
        if not self._uuids:
            raise ActuationRefused("no power limit can be set: no GPU is in scope")
        with ExitStack() as stack:
            try:
                nvml = Nvml()
            except MeterError as error:
                raise ActuationError(f"no power limit can be set: {error}") from error
            stack.callback(nvml.close)
            self._file = RecordFile(self._state_file)
            stack.callback(self._file.close)
            restore_left_over(nvml, self._file, self._say)
            self._gpus = {uuid: GpuPowerLimit(nvml, uuid) for uuid in self._uuids}
            self._wanted = self.found_watts = {u: g.limit_watts() for u, g in self._gpus.items()}
            self._enforced = {u: g.enforced_watts() for u, g in self._gpus.items()}
            self.reference_watts = min(self._enforced.values())
            self._found_enforced = self._enforced
            stack.enter_context(undone_at_end(self._undo))
            stack.push(self._leave)
            self._record = LimitRecord(
                gpus={uuid: Found(watts=watts) for uuid, watts in self.found_watts.items()}
            )
            self._file.write(self._record)
            self._write(self.found_watts)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def check(self, watts: float) -> None:
        """ActuationRefused, with the range, for a limit that one of the boards does not allow."""
        for gpu in self._gpus.values():
            gpu.check(watts)

    def set(self, watts: float | None) -> None:
        """Set all GPUs to `watts`, or to what was found (None); returns when it has settled.

        ActuationRefused: out of range, then nothing is changed. ActuationError, as `confirm`: after
        it, and after any other failure, what was found is put back.
        """
        if self._record is None:
            raise ActuationError("the power limits have been put back: none is set any more")
        if watts is not None:
            self.check(watts)
        try:
            self.confirm()
            if watts is None:
                self._wanted, self._enforced = self.found_watts, self._found_enforced
            else:
                self._record = _asked(self._record, watts)
                self._file.write(self._record)
                self._wanted = self._enforced = dict.fromkeys(self._gpus, watts)
            self._write(self._wanted)
            self._sleep(self.settle_s)
            self.confirm()
        except BaseException:
            self._undo()
            raise

    def confirm(self) -> None:
        """ActuationError unless what was last set is in force on every GPU."""
        for uuid, gpu in self._gpus.items():
            wanted, now = self._wanted[uuid], gpu.limit_watts()
            if not same(now, wanted):
                raise ActuationError(
                    f"{gpu.label}: the power limit is {now:g} W where {wanted:g} W was set: "
                    "another program sets it too"
                )
            enforced = gpu.enforced_watts()
            if enforced < self._enforced[uuid] - SAME_WATTS:
                raise ActuationError(
                    f"{gpu.label}: {enforced:g} W is enforced where {wanted:g} W was set: a lower "
                    "limit holds, set out of band or by the board"
                )

    def restore(self) -> None:
        """Put back what was found; nothing can be set after that. ActuationError as `put_back`."""
        if self._record is not None:
            put_back(self._record, self._file, self._gpus.__getitem__, self._say)
            self._record = None

    def _write(self, watts: Mapping[str, float]) -> None:
        for uuid, gpu in self._gpus.items():
            gpu.write(watts[uuid])

    def _undo(self) -> None:
        with suppress(ActuationError, OSError):  # said, and kept in the state file
            self.restore()

    def _leave(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.restore()
        except ActuationError:
            if kind is None:  # else the first reason is the one to know; this one was said
                raise


def _asked(record: LimitRecord, watts: float) -> LimitRecord:
    """The record with one more limit that the GPUs may have from us."""
    return LimitRecord(
        gpus={
            uuid: replace(one, asked_watts=tuple(dict.fromkeys((*one.asked_watts, watts))))
            for uuid, one in record.gpus.items()
        }
    )
