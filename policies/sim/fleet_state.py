"""The state of a simulated fleet, as arrays that compiled code changes in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_F = TypeVar("_F", bound=Callable[..., object])

NOBODY = -1
# Columns of `Fleet.coefficients`, one row per power limit: three times the seven of a step, in the
# order t0, a, b, c, q, d, knee.
UNDER_LIMIT, UNLIMITED, ENERGY = 0, 7, 14
PER_KV, PER_SEQ_BEYOND, KNEE = 2, 5, 6
IDLE_WATTS, CEILING_WATTS, NUM_COEFFICIENTS = 21, 22, 23
LEAST_OUTSTANDING, POWER_OF_TWO, PACKED = range(3)  # routers
REACHED, NEEDS_ARRIVALS, DONE_FULL, SLOTS_FULL = range(4)  # what `advance` returns
# Indices of `Fleet.numbers`.
FREE, DONE, ORDER, HELD_HEAD, HELD_TAIL, HELD = range(6)
BUDGET_TOKENS, KV_CAPACITY_TOKENS, ROUTER, ATTAINABLE_TOKENS, LOST, NUM_NUMBERS = range(6, 12)
RING = 512  # lengths that a replica remembers
TTFT_TARGET_S, TPOT_TARGET_S = 0, 1  # of `Fleet.targets`


def jit(function: _F) -> _F:
    """Compile at the first call; kept for the next process where `serve_app.simulator` says so."""
    compiled: _F = njit(cache=bool(config.CACHE_DIR))(function)
    return compiled


class Fleet(NamedTuple):
    """Everything that changes: R replicas, at most S sequences each, P request slots."""

    # Per replica.
    on: Ints  # 1: it is there and draws power
    accepting: Ints  # 1: the router may choose it
    cap: Ints  # running sequences at most
    row: Ints  # of `coefficients`: the limit in force
    clock_s: Floats  # idle: since when; else when the stretch under way began
    end_s: Floats  # when that ends; inf: idle
    length: Ints  # steps in it
    chunk_tokens: Ints  # prompt tokens in it: then it is one step
    chunk_seqs: Ints  # prompts that they belong to
    chunk_kv_tokens: Ints  # context of those after the step
    chunk_pairs: Floats  # (computed token, token it attends to)
    factor: Floats  # jitter of the stretch
    steps: Ints  # so far
    running: Ints  # sequences that decode
    kv_tokens: Ints  # their context
    partial: Ints  # slot of the prompt that was cut, or NOBODY
    partial_tokens: Ints  # computed of it
    finishing: Ints  # prompts that are complete at the end of the step
    waiting: Ints
    head: Ints
    tail: Ints
    outstanding: Ints  # arrived and not ended
    arrived: Ints
    ended: Ints
    waiting_tokens: Ints  # prompt tokens of those that wait
    pack_seqs: Ints  # the router passes it by from so many outstanding; 0: spread
    pack_tokens: Ints  # and from so many prompt tokens that wait
    judged: Ints  # first tokens of requests that could be in time
    late: Ints  # of those, the late ones
    slow: Ints  # and the ones in time that then decoded too slowly
    active_joules: Floats
    prefill_joules: Floats  # part of it: what prompts added to steps
    idle_joules: Floats
    busy_s: Floats  # in steps that have ended
    believed_s: Floats  # what `Fleet.believed` gives those; 0 where it is empty
    output_tokens: Ints
    preemptions: Ints
    # Per replica and sequence: a min-heap by the step after which a sequence has ended.
    heap_step: Ints
    heap_slot: Ints
    finishing_slot: Ints
    # Per replica, the last RING lengths: of what arrived, of what ended.
    ring_prompt: Ints
    ring_output: Ints
    # Per slot.
    arrival_s: Floats
    prompt_tokens: Ints
    total_tokens: Ints  # output wanted
    made_tokens: Ints  # of it, before it decodes (again)
    start_step: Ints  # the replica's count when that began
    first_s: Floats  # of the first token; nan: none yet
    order: Ints  # of arrival
    following: Ints  # in a line, or in the list of free slots
    # Ended requests.
    done_arrival_s: Floats
    done_first_s: Floats
    done_end_s: Floats
    done_prompt_tokens: Ints
    done_output_tokens: Ints
    done_replica: Ints
    coefficients: Floats
    believed: Floats  # per row, the step time under it as somebody believes; or no rows
    numbers: Ints
    random: NDArray[np.uint64]  # (1,)
    jitter: Floats  # (1,): standard deviation of the log time of one step
    targets: Floats  # (2,): TTFT, TPOT in seconds


class Arrivals(NamedTuple):
    """Requests in the order of their arrival: seconds, prompt tokens, output tokens (>= 1)."""

    times_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints


def new_fleet(  # noqa: PLR0913  (a fleet's sizes and rules)
    coefficients: Floats,
    *,
    replicas: int,
    max_num_seqs: int,
    budget_tokens: int,
    kv_capacity_tokens: int,
    slots: int,
    done: int,
    router: int = LEAST_OUTSTANDING,
    pack_seqs: int = 0,
    jitter: float = 0.0,
    seed: int = 0,
    targets_s: tuple[float, float] = (np.inf, np.inf),
    attainable_tokens: int = 1 << 40,
    believed: Floats | None = None,
) -> Fleet:
    """An idle fleet of which no replica accepts. `coefficients`: (limits, NUM_COEFFICIENTS);
    `done`: room for ended requests, at least twice `max_num_seqs`. `targets_s`: TTFT and TPOT by
    which requests with at most `attainable_tokens` of prompt are judged. `believed`: (limits, 7) or
    (limits, more), the step times that are summed beside the true ones."""
    numbers = np.zeros(NUM_NUMBERS, dtype=np.int64)
    numbers[BUDGET_TOKENS], numbers[KV_CAPACITY_TOKENS] = budget_tokens, kv_capacity_tokens
    numbers[ROUTER], numbers[ATTAINABLE_TOKENS] = router, attainable_tokens
    numbers[HELD_HEAD] = numbers[HELD_TAIL] = NOBODY
    following = np.arange(1, slots + 1, dtype=np.int64)
    following[-1] = NOBODY

    def ints(*shape: int) -> Ints:
        return np.zeros(shape, dtype=np.int64)

    def floats(*shape: int) -> Floats:
        return np.zeros(shape, dtype=np.float64)

    nobody = np.full(replicas, NOBODY, dtype=np.int64)
    r, s = replicas, max_num_seqs
    return Fleet(
        on=ints(r),
        accepting=ints(r), cap=np.full(r, max_num_seqs, dtype=np.int64), row=ints(r),
        clock_s=floats(r), end_s=np.full(r, np.inf), length=ints(r), chunk_tokens=ints(r),
        chunk_seqs=ints(r), chunk_kv_tokens=ints(r), chunk_pairs=floats(r),
        factor=np.ones(r), steps=ints(r), running=ints(r), kv_tokens=ints(r),
        partial=nobody.copy(), partial_tokens=ints(r), finishing=ints(r), waiting=ints(r),
        head=nobody.copy(), tail=nobody.copy(), outstanding=ints(r), arrived=ints(r),
        ended=ints(r), waiting_tokens=ints(r), pack_seqs=np.full(r, pack_seqs, dtype=np.int64),
        pack_tokens=np.full(r, 1 << 40, dtype=np.int64),
        judged=ints(r), late=ints(r), slow=ints(r),
        ring_prompt=ints(r, RING), ring_output=ints(r, RING),
        active_joules=floats(r), prefill_joules=floats(r), idle_joules=floats(r),
        busy_s=floats(r), believed_s=floats(r), output_tokens=ints(r), preemptions=ints(r),
        heap_step=ints(r, s), heap_slot=ints(r, s), finishing_slot=ints(r, s),
        arrival_s=floats(slots), prompt_tokens=ints(slots), total_tokens=ints(slots),
        made_tokens=ints(slots), start_step=ints(slots), first_s=floats(slots),
        order=ints(slots), following=following,
        done_arrival_s=floats(done), done_first_s=floats(done), done_end_s=floats(done),
        done_prompt_tokens=ints(done), done_output_tokens=ints(done), done_replica=ints(done),
        coefficients=np.ascontiguousarray(coefficients, dtype=np.float64),
        believed=floats(0, 0) if believed is None else np.ascontiguousarray(believed),
        numbers=numbers,
        random=np.array([(seed * 2 + 1) * 0x9E3779B97F4A7C15 % 2**64], dtype=np.uint64),
        jitter=np.array([jitter]), targets=np.array(targets_s, dtype=np.float64),
    )  # fmt: skip
