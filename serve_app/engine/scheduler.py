"""vLLM's scheduler with a run-time cap on running requests and a per-step tap.

Private names of vLLM touched here (tested on vllm 0.29 by tests/contracts): `schedule`,
`get_grammar_bitmask`, `update_from_output`, `add_request`, `finish_requests`, `requests`,
`Request.arrival_time`, `running`, `max_num_running_reqs` / `max_num_active_reqs` (>= 0.32),
`finished_req_ids`, and `EngineCore` for the utility call.

Set in engine_kwargs as `scheduler_cls: serve_app.engine.scheduler.capped_scheduler`; our builder
does it. vLLM's PR 54816 proposes the same cap upstream; this shim goes when it lands.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore

from serve_app.engine.step_link import StepMessage, StepSender

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.v1.core.sched.output import SchedulerOutput


class _RunTimeCap:
    """Mix-in: `max_num_active_seqs` below the start-time capacity `max_num_seqs`.

    Lowering drains: running requests finish, none is admitted until fewer than the cap run.
    Raising takes effect on the next step. Nothing is ever preempted by the cap.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_num_seqs: int = self.max_num_running_reqs  # type: ignore[has-type]
        self._max_num_active_seqs = self._max_num_seqs

    def set_max_num_active_seqs(self, cap: int | None) -> tuple[int, int, int]:
        """Set the cap (None = only ask); returns (cap in force, running, max_num_seqs)."""
        if cap is not None:
            self._max_num_active_seqs = min(max(1, int(cap)), self._max_num_seqs)
        return self._max_num_active_seqs, len(self.running), self._max_num_seqs  # type: ignore[attr-defined]

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        if hasattr(self, "max_num_active_reqs"):  # vLLM >= 0.32 has an admission cap of its own
            self.max_num_active_reqs = self._max_num_active_seqs
        else:  # 0.29 asserts running <= max_num_running_reqs, so drain down with it
            self.max_num_running_reqs = max(
                self._max_num_active_seqs,
                len(self.running),  # type: ignore[attr-defined]
            )
        return super().schedule(*args, **kwargs)  # type: ignore[misc]


class _StepTap:
    """Mix-in: tells the replica which request gets how many tokens in each step, and when.

    A system call lets go of the interpreter lock, and the thread that encodes the last step's
    outputs takes it: before the model runs that made every step 0.7 ms longer (8 sequences on a
    CPU, measured). So the begin of a step is written once the workers have it, while this process
    waits for them: EngineCore asks for the grammar bitmask then.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._link = self._sender = StepSender.from_environment()
        self._handles: dict[str, int] = {}
        self._next_handle = 0

    def schedule(self, *args: Any, **kwargs: Any) -> SchedulerOutput:
        start_s = time.monotonic()
        output: SchedulerOutput = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self._link is not None and output.total_num_scheduled_tokens:
            self._send_begin(start_s, output)
        return output

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super().add_request(request, *args, **kwargs)  # type: ignore[misc]
        if self._link is not None and request.request_id not in self._handles:
            handle = self._introduce(request.request_id)
            self._link.send(
                StepMessage(
                    kind="a",
                    time_s=_arrived_s(request),
                    names=[(handle, request.request_id)],
                    shares=[handle, request.num_prompt_tokens, 0, 0],
                )
            )

    def set_step_tap(self, on: bool) -> None:
        """Send step messages, or none; requests are introduced anew when they are next seen."""
        self._link = self._sender if on else None
        if not on:
            self._handles.clear()

    def _introduce(self, request_id: str) -> int:
        handle = self._handles[request_id] = self._next_handle
        self._next_handle += 1
        return handle

    def _send_begin(self, start_s: float, output: SchedulerOutput) -> None:
        names: list[tuple[int, str]] = []
        shares: list[int] = []
        for request_id, tokens in output.num_scheduled_tokens.items():
            handle = self._handles.get(request_id)
            if handle is None:
                handle = self._introduce(request_id)
                names.append((handle, request_id))
            request = self.requests[request_id]  # type: ignore[attr-defined]
            after = request.num_computed_tokens  # schedule() has advanced it already
            prefill = max(0, min(after, request.num_prompt_tokens) - (after - tokens))
            shares += (handle, prefill, tokens - prefill, after)
        assert self._link is not None
        self._link.queue(StepMessage(kind="b", time_s=start_s, names=names, shares=shares))

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> Any:
        """Called once the workers have the step."""
        result = super().get_grammar_bitmask(scheduler_output)  # type: ignore[misc]
        if self._link is not None:
            self._link.flush()
        return result

    def update_from_output(self, scheduler_output: SchedulerOutput, *args: Any) -> Any:
        result = super().update_from_output(scheduler_output, *args)  # type: ignore[misc]
        if self._link is not None and scheduler_output.total_num_scheduled_tokens:
            self._link.send(
                StepMessage(
                    kind="e",
                    time_s=time.monotonic(),
                    finished=self._forget(self.finished_req_ids),  # type: ignore[attr-defined]
                )
            )
        return result

    def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
        gone = super().finish_requests(request_ids, *args, **kwargs)  # type: ignore[misc]
        if self._link is not None and gone:
            handles = self._forget(request.request_id for request in gone)
            if handles:
                self._link.send(StepMessage(kind="f", time_s=time.monotonic(), finished=handles))
        return gone

    def _forget(self, request_ids: Iterable[str]) -> list[int]:
        handles = (self._handles.pop(request_id, None) for request_id in request_ids)
        return [handle for handle in handles if handle is not None]


def _arrived_s(request: Any) -> float:
    """When the replica took the request, on the clock of the steps: it comes here only between two
    steps. vLLM counts TTFT from that moment too."""
    on_its_way_s = time.time() - getattr(request, "arrival_time", math.inf)
    return time.monotonic() - max(on_its_way_s, 0.0)


class CappedScheduler(_StepTap, _RunTimeCap, Scheduler):  # type: ignore[misc]
    """The synchronous scheduler (CPU engine)."""


class CappedAsyncScheduler(_StepTap, _RunTimeCap, AsyncScheduler):  # type: ignore[misc]
    """The asynchronous scheduler (default on GPU)."""


def capped_scheduler(*args: Any, **kwargs: Any) -> CappedScheduler | CappedAsyncScheduler:
    """The capped scheduler on the base class that vLLM would have picked itself."""
    config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
    cls = CappedAsyncScheduler if config.scheduler_config.async_scheduling else CappedScheduler
    return cls(*args, **kwargs)


def _set_max_num_active_seqs(self: Any, cap: int | None = None) -> tuple[int, int, int]:
    """EngineCore utility: reached from the replica through `call_utility_async`."""
    answer: tuple[int, int, int] = self.scheduler.set_max_num_active_seqs(cap)
    return answer


def _set_step_tap(self: Any, on: bool) -> None:
    """EngineCore utility: switches the step messages."""
    self.scheduler.set_step_tap(on)


# Additive: EngineCore dispatches utility calls by attribute name.
EngineCore.jouleserve_set_max_num_active_seqs = _set_max_num_active_seqs
EngineCore.jouleserve_set_step_tap = _set_step_tap
