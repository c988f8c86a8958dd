"""Joins what the request path, the engine and the books know of one request into its row.

The three hear of a request's end in any order, a few turns of the event loop apart; an abort
reaches the engine later still. A row is made when all have spoken.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from serve_app.engine.access import WARM_UP_ID, response_id
from serve_app.engine.tap import FinishedRequest
from serve_app.request_log.call import Call
from serve_app.request_log.row import Outcome, Row

SETTLE_S = 0.2  # after the last word about a request, for the words still on their way
SWEEP_S = 0.05
ENGINE_WAIT_S = 30.0  # for the engine's word about a request whose answer has ended
_KEPT_IDS = 4096
_MAX_IDS = 8
_MAX_ID_CHARS = 128
_OUTCOMES: dict[str, Outcome] = {"abort": "aborted", "error": "failed"}  # of finish reasons

EnergyOf = Callable[[str], dict[str, Any]]  # response id → the API's energy object; settles it


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The replica that writes."""

    application: str
    deployment: str
    replica: str
    model: str


class Following:
    """A `with` block around the making of an answer."""

    __slots__ = ("_call", "_end")

    def __init__(self, call: Call, end: Callable[[Call, Outcome], None]) -> None:
        self._call = call
        self._end = end

    def __enter__(self) -> Call:
        return self._call

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What is no Exception is the end of a task or a generator: the client has left.
        failed = kind is not None and issubclass(kind, Exception)
        self._end(self._call, self._call.outcome or ("failed" if failed else "aborted"))


class OpenRequests:
    """The requests of one replica that have no row yet. Lives on the event loop.

    `energy_of` is asked for a request whose client was not told its energy, when it has left the
    engine. A request that the request path does not follow (another endpoint) gets its row
    from the engine's word alone, so that no answer is left out.
    """

    def __init__(
        self, identity: Identity, energy_of: EnergyOf, write: Callable[[Row], None]
    ) -> None:
        self._identity = identity
        self._energy_of = energy_of
        self._write = write
        self._open: dict[str, Call] = {}
        self._told: OrderedDict[str, None] = OrderedDict()  # responses that have their row
        # Ended calls by when their row is due: with the engine's word, and still without it.
        self._settling: deque[tuple[float, Call]] = deque()
        self._waiting: dict[Call, float] = {}
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._open)

    # ---- the request path

    def follow(self, call: Call) -> Following:
        """Follow a call while its answer is made, in a `with` block. A block that is left before
        the call is answered was aborted by its client, or failed by its exception."""
        self._open[call.response_id] = call
        return Following(call, self._end)

    def told(self, response: str, energy: dict[str, Any]) -> None:
        """The client is being told this energy: its row will say the same."""
        call = self._open.get(response)
        if call is not None:
            call.energy = energy

    def _end(self, call: Call, outcome: Outcome) -> None:
        call.ended_s = time.monotonic()
        call.outcome = outcome
        if outcome in {"completed", "aborted"} and not call.left_engine:
            self._waiting[call] = call.ended_s + ENGINE_WAIT_S
        else:
            self._settling.append((call.ended_s + SETTLE_S, call))
        self._sweep_later()

    # ---- the engine

    def finished(self, request: FinishedRequest) -> None:
        """One engine request has been answered."""
        response = response_id(request.request_id)
        call = self._open.get(response)
        if call is not None:
            call.sequences.append(request)
            self._left_engine(call)
            return
        if response == WARM_UP_ID or response in self._told:
            return
        call = Call(response_id=response)
        call.sequences.append(request)
        call.arrived_s -= request.e2e_s
        call.arrived_utc_s -= request.e2e_s
        call.ended_s = time.monotonic()
        call.outcome = "completed"
        self._write_row(call)

    def aborted(self, response: str) -> None:
        """An engine request of this response has left without an answer."""
        call = self._open.get(response)
        if call is not None:
            self._left_engine(call)

    def _left_engine(self, call: Call) -> None:
        call.left_engine = True
        if self._waiting.pop(call, None) is not None:
            self._settling.append((time.monotonic() + SETTLE_S, call))

    # ---- the row

    def _sweep_later(self) -> None:
        """One timer for all: a timer for each of 2,000 requests/s costs more than its row."""
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = False
        now_s = time.monotonic()
        while self._settling and self._settling[0][0] <= now_s:
            self._write_row(self._settling.popleft()[1])
        while self._waiting:
            call, due_s = next(iter(self._waiting.items()))  # the first has waited longest
            if due_s > now_s:
                break
            del self._waiting[call]
            self._write_row(call)
        if self._settling or self._waiting:
            self._sweep_later()

    def _write_row(self, call: Call) -> None:
        if self._open.get(call.response_id) is call:
            del self._open[call.response_id]
        self._told[call.response_id] = None
        while len(self._told) > _KEPT_IDS:
            self._told.popitem(last=False)
        energy = call.energy or self._energy_of(call.response_id)
        self._write(make_row(call, self._identity, energy))


def make_row(call: Call, identity: Identity, energy: dict[str, Any]) -> Row:
    """The row of a call that has ended; `energy` as the client was told it."""
    assert call.ended_s is not None
    engine = _engine_facts(call.sequences)
    outcome: Outcome = call.outcome or "failed"
    if outcome == "completed":
        outcome = next((_OUTCOMES[r] for r in engine.reasons if r in _OUTCOMES), outcome)
    start_s, ttft_s = call.arrived_utc_s, engine.ttft_s
    return Row(
        response_id=call.response_id[:_MAX_ID_CHARS],
        engine_request_ids=engine.request_ids,
        num_sequences=len(call.sequences),
        start=_utc(start_s),
        first_token=None if ttft_s is None else _utc(start_s + ttft_s),
        end=_utc(start_s + call.ended_s - call.arrived_s),
        prompt_tokens=engine.prompt_tokens,
        output_tokens=engine.output_tokens,
        cached_tokens=engine.cached_tokens,
        ttft_s=ttft_s,
        tpot_s=engine.tpot_s,
        queue_s=engine.queue_s,
        joules=energy.get("joules"),
        idle_joules=energy.get("idle_joules"),
        prefill_joules=energy.get("prefill_joules"),
        decode_joules=energy.get("decode_joules"),
        device_joules=energy.get("devices") or {},
        source=str(energy.get("source", "unavailable")),
        unavailable=energy.get("reason"),
        method=energy.get("method"),
        attribution_ratio=energy.get("attribution_ratio"),
        coverage_ratio=energy.get("coverage_ratio"),
        model=identity.model,
        application=identity.application,
        deployment=identity.deployment,
        replica=identity.replica,
        tenant=call.tenant.name,
        tenant_kind=call.tenant.kind,
        outcome=outcome,
        finish_reason="+".join(engine.reasons) or None,
    )


class _EngineFacts(NamedTuple):
    """What the engine said of all sequences of a response."""

    request_ids: tuple[str, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    queue_s: float | None = None
    reasons: tuple[str, ...] = ()


def _engine_facts(done: list[FinishedRequest]) -> _EngineFacts:
    if not done:
        return _EngineFacts()
    if len(done) == 1:  # nearly always, and this runs for every request
        (one,) = done
        return _EngineFacts(
            (one.request_id[:_MAX_ID_CHARS],),
            one.prompt_tokens,
            one.output_tokens,
            one.cached_tokens,
            one.ttft_s if one.output_tokens else None,
            one.tpot_s,
            one.queue_s,
            (one.outcome,),
        )
    timed = [(s.tpot_s, s.output_tokens - 1) for s in done if s.tpot_s is not None]
    steps = sum(tokens for _, tokens in timed)
    decode_s = math.fsum(tpot_s * tokens for tpot_s, tokens in timed)
    return _EngineFacts(
        tuple(dict.fromkeys(s.request_id[:_MAX_ID_CHARS] for s in done))[:_MAX_IDS],
        _per_prompt(done, lambda s: s.prompt_tokens, max),
        sum(s.output_tokens for s in done),
        _per_prompt(done, lambda s: s.cached_tokens, min),
        min((s.ttft_s for s in done if s.output_tokens), default=None),
        decode_s / steps if steps else None,
        max(s.queue_s for s in done),
        tuple(sorted({s.outcome for s in done})),
    )


def _per_prompt(
    done: list[FinishedRequest],
    tokens: Callable[[FinishedRequest], int],
    of_samples: Callable[[int, int], int],
) -> int:
    """A sum over prompts: samples of one prompt share its id and its tokens. The first of them
    computes what the others find in the cache."""
    by_prompt: dict[str, int] = {}
    for sequence in done:
        key, value = sequence.request_id, tokens(sequence)
        by_prompt[key] = of_samples(by_prompt[key], value) if key in by_prompt else value
    return sum(by_prompt.values())


def _utc(time_s: float) -> datetime:
    return datetime.fromtimestamp(time_s, UTC)
