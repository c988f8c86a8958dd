"""One replica's steps: what vLLM's scheduler puts into them, how long they take, what they bring.

See `policies.sim.kernel` for the rules.
"""

from __future__ import annotations

import math

import numpy as np

from policies.sim.fleet_parts import normal, push, remove
from policies.sim.fleet_state import (
    ATTAINABLE_TOKENS,
    BUDGET_TOKENS,
    CEILING_WATTS,
    DONE,
    ENERGY,
    FREE,
    IDLE_WATTS,
    KNEE,
    KV_CAPACITY_TOKENS,
    LOST,
    NOBODY,
    PER_KV,
    PER_SEQ_BEYOND,
    RING,
    TPOT_TARGET_S,
    TTFT_TARGET_S,
    UNDER_LIMIT,
    UNLIMITED,
    Fleet,
    Floats,
    jit,
)


@jit
def begin(f: Fleet, r: int, now_s: float) -> None:
    """Make the next step, or stretch, of a replica that has none."""
    idle_until(f, r, now_s)
    capacity, preempted = f.numbers[KV_CAPACITY_TOKENS], f.preemptions[r]
    while f.running[r] > 1 and f.kv_tokens[r] + f.partial_tokens[r] + f.running[r] > capacity:
        _preempt(f, r)
    admits = preempted == f.preemptions[r]  # a step that took a place away gives none
    f.chunk_tokens[r], f.chunk_seqs[r], f.chunk_kv_tokens[r] = 0, 0, 0
    f.chunk_pairs[r], f.finishing[r] = 0.0, 0
    budget = f.numbers[BUDGET_TOKENS] - f.running[r]
    room = capacity - f.kv_tokens[r] - f.partial_tokens[r] - f.running[r]
    if f.partial[r] != NOBODY:
        used = _chunk(f, r, budget, room)
        budget, room = budget - used, room - used
    while admits and f.partial[r] == NOBODY and f.waiting[r] > 0 and budget > 0:
        slot = f.head[r]
        if f.running[r] + f.finishing[r] >= f.cap[r]:
            break
        rest = f.prompt_tokens[slot] + f.made_tokens[slot]
        if min(rest, budget) > room and f.running[r] + f.chunk_seqs[r] > 0:
            break
        f.head[r] = f.following[slot]
        f.waiting[r] -= 1
        f.waiting_tokens[r] -= rest
        f.partial[r], f.partial_tokens[r] = slot, 0
        used = _chunk(f, r, budget, room)
        budget, room = budget - used, room - used
    if f.chunk_tokens[r] > 0:
        f.length[r] = 1
    elif f.running[r] > 0:
        room = capacity - f.kv_tokens[r] - f.partial_tokens[r]
        until_full = max(1, room // f.running[r])
        # Whoever lost its place may have it back in the next step: that ends this stretch.
        f.length[r] = min(f.heap_step[r, 0] - f.steps[r], until_full) if admits else 1
    else:
        f.length[r] = 0
        f.end_s[r] = np.inf
        return
    f.factor[r] = 1.0
    if f.jitter[0] > 0.0:
        f.factor[r] = math.exp(f.jitter[0] / math.sqrt(f.length[r]) * normal(f))
    f.end_s[r] = now_s + _stretch_s(f, r, f.length[r])


@jit
def _chunk(f: Fleet, r: int, budget: int, room: int) -> int:
    """Compute as much of the partial prompt as fits; returns the tokens. A prompt that has the
    replica for itself is computed whatever the cache holds."""
    slot, done = f.partial[r], f.partial_tokens[r]
    rest = f.prompt_tokens[slot] + f.made_tokens[slot] - done
    tokens = min(rest, budget)
    if f.running[r] + f.chunk_seqs[r] > 0:
        tokens = min(tokens, room)
    if tokens <= 0:
        return 0
    after = done + tokens
    f.chunk_tokens[r] += tokens
    f.chunk_seqs[r] += 1
    f.chunk_kv_tokens[r] += after
    f.chunk_pairs[r] += 0.5 * (float(after) * after - float(done) * done)
    if tokens == rest:
        f.finishing_slot[r, f.finishing[r]] = slot
        f.finishing[r] += 1
        f.partial[r], f.partial_tokens[r] = NOBODY, 0
    else:
        f.partial[r], f.partial_tokens[r] = slot, after
    return int(tokens)


@jit
def finish(f: Fleet, r: int) -> None:
    """What the end of a stretch brings: energy, tokens, completions."""
    now_s, length = f.end_s[r], f.length[r]
    joules = stretch_joules(f, r)
    f.active_joules[r] += joules
    f.busy_s[r] += now_s - f.clock_s[r]
    if len(f.believed) > 0:
        f.believed_s[r] += _total(f.believed[f.row[r]], UNDER_LIMIT, length, *_composition(f, r))
    if f.chunk_tokens[r] > 0:
        c = f.coefficients[f.row[r]]
        whole = _total(c, ENERGY, 1, *_composition(f, r))
        decode = 0.0
        if f.running[r] > 0:
            decode = _total(c, ENERGY, 1, float(f.running[r]), float(f.kv_tokens[r]), 0.0, 0.0)
        f.prefill_joules[r] += joules * (1.0 - decode / whole) if whole > 0.0 else 0.0
    f.clock_s[r], f.end_s[r] = now_s, np.inf
    f.steps[r] += length
    f.kv_tokens[r] += f.running[r] * length
    f.output_tokens[r] += f.running[r] * length
    while f.running[r] > 0 and f.heap_step[r, 0] <= f.steps[r]:
        slot = f.heap_slot[r, 0]
        remove(f, r, 0)
        f.kv_tokens[r] -= f.prompt_tokens[slot] + f.total_tokens[slot] - 1
        _end(f, r, slot, now_s)
    for k in range(f.finishing[r]):
        slot = f.finishing_slot[r, k]
        f.output_tokens[r] += 1
        if math.isnan(f.first_s[slot]):
            f.first_s[slot] = now_s
            if f.prompt_tokens[slot] <= f.numbers[ATTAINABLE_TOKENS]:
                f.judged[r] += 1
                if now_s - f.arrival_s[slot] > f.targets[TTFT_TARGET_S]:
                    f.late[r] += 1
        context = f.prompt_tokens[slot] + f.made_tokens[slot]
        f.made_tokens[slot] += 1
        if f.made_tokens[slot] >= f.total_tokens[slot]:
            _end(f, r, slot, now_s)
        else:
            f.start_step[slot] = f.steps[r]
            f.kv_tokens[r] += context
            push(f, r, f.steps[r] + f.total_tokens[slot] - f.made_tokens[slot], slot)
    f.finishing[r] = 0


@jit
def _end(f: Fleet, r: int, slot: int, now_s: float) -> None:
    k, tokens = f.numbers[DONE], f.total_tokens[slot]
    in_time = f.first_s[slot] - f.arrival_s[slot] <= f.targets[TTFT_TARGET_S]
    slow = now_s - f.first_s[slot] > f.targets[TPOT_TARGET_S] * (tokens - 1)
    if slow and in_time and f.prompt_tokens[slot] <= f.numbers[ATTAINABLE_TOKENS]:
        f.slow[r] += 1
    f.ring_output[r, f.ended[r] % RING] = tokens
    f.ended[r] += 1
    f.done_arrival_s[k], f.done_first_s[k] = f.arrival_s[slot], f.first_s[slot]
    f.done_end_s[k], f.done_replica[k] = now_s, r
    f.done_prompt_tokens[k] = f.prompt_tokens[slot]
    f.done_output_tokens[k] = tokens
    f.numbers[DONE] = k + 1
    f.outstanding[r] -= 1
    _free(f, slot)


@jit
def _preempt(f: Fleet, r: int) -> None:
    """The sequence that came last goes to the head of the line and loses its context."""
    place = 0
    for k in range(1, f.running[r]):
        if f.order[f.heap_slot[r, k]] > f.order[f.heap_slot[r, place]]:
            place = k
    slot = f.heap_slot[r, place]
    remove(f, r, place)
    decoded = f.steps[r] - f.start_step[slot]
    f.kv_tokens[r] -= f.prompt_tokens[slot] + f.made_tokens[slot] - 1 + decoded
    f.made_tokens[slot] += decoded
    f.following[slot] = f.head[r] if f.waiting[r] > 0 else NOBODY
    if f.waiting[r] == 0:
        f.tail[r] = slot
    f.head[r] = slot
    f.waiting[r] += 1
    f.waiting_tokens[r] += f.prompt_tokens[slot] + f.made_tokens[slot]
    f.preemptions[r] += 1


@jit
def idle_until(f: Fleet, r: int, now_s: float) -> None:
    """Book the idle energy of a replica that has no step under way."""
    if f.end_s[r] == np.inf and now_s > f.clock_s[r]:
        watts = f.coefficients[f.row[r], IDLE_WATTS]
        f.idle_joules[r] += watts * (now_s - f.clock_s[r])
    f.clock_s[r] = now_s


@jit
def cut(f: Fleet, r: int, now_s: float) -> None:
    """End the stretch with the step that is under way at `now_s`."""
    if f.length[r] <= 1:
        return
    low, high = 1, f.length[r]
    elapsed_s = now_s - f.clock_s[r]
    while low < high:
        middle = (low + high) // 2
        if _stretch_s(f, r, middle) >= elapsed_s:
            high = middle
        else:
            low = middle + 1
    if low < f.length[r]:
        f.length[r] = low
        f.end_s[r] = f.clock_s[r] + _stretch_s(f, r, low)


@jit
def _composition(f: Fleet, r: int) -> tuple[float, float, float, float]:
    """n, kv, prefill tokens and pairs of the stretch's first step."""
    return (
        float(f.running[r] + f.chunk_seqs[r]),
        float(f.kv_tokens[r] + f.chunk_kv_tokens[r]),
        float(f.chunk_tokens[r]),
        f.chunk_pairs[r],
    )


@jit
def _total(  # noqa: PLR0913, PLR0917  (a compiled inner loop)
    c: Floats, first: int, length: int, n: float, kv: float, prefill: float, pairs: float
) -> float:
    """Seconds or joules of `length` steps of which the first has this composition."""
    beyond = max(0.0, n + prefill - c[first + KNEE])
    step = (
        c[first]
        + c[first + 1] * n
        + c[first + PER_KV] * kv
        + c[first + 3] * prefill
        + c[first + 4] * pairs
        + c[first + PER_SEQ_BEYOND] * beyond
    )
    return float(length * step + c[first + PER_KV] * n * 0.5 * length * (length - 1))


@jit
def _stretch_s(f: Fleet, r: int, length: int) -> float:
    c = f.coefficients[f.row[r]]
    return float(f.factor[r] * _total(c, UNDER_LIMIT, length, *_composition(f, r)))


@jit
def stretch_joules(f: Fleet, r: int) -> float:
    """Draw without a limit, cut at the ceiling, times the time under the limit."""
    c = f.coefficients[f.row[r]]
    n, kv, prefill, pairs = _composition(f, r)
    natural_s = _total(c, UNLIMITED, f.length[r], n, kv, prefill, pairs)
    joules = _total(c, ENERGY, f.length[r], n, kv, prefill, pairs)
    return float(min(joules / natural_s, c[CEILING_WATTS]) * (f.end_s[r] - f.clock_s[r]))


@jit
def lose(f: Fleet, r: int, now_s: float) -> int:
    """The replica fails: what it had under way is lost, and so is the step. Returns how many
    requests that were. The energy of the step up to now stays on the books."""
    if f.end_s[r] < np.inf:
        share = (now_s - f.clock_s[r]) / (f.end_s[r] - f.clock_s[r])
        f.active_joules[r] += stretch_joules(f, r) * min(max(share, 0.0), 1.0)
    elif f.on[r]:
        idle_until(f, r, now_s)
    lost = 0
    for k in range(f.running[r]):
        _free(f, f.heap_slot[r, k])
        lost += 1
    for k in range(f.finishing[r]):
        _free(f, f.finishing_slot[r, k])
        lost += 1
    if f.partial[r] != NOBODY:
        _free(f, f.partial[r])
        lost += 1
    while f.waiting[r] > 0:
        slot = f.head[r]
        f.head[r] = f.following[slot]
        f.waiting[r] -= 1
        _free(f, slot)
        lost += 1
    f.running[r], f.finishing[r], f.kv_tokens[r] = 0, 0, 0
    f.partial[r], f.partial_tokens[r] = NOBODY, 0
    f.head[r], f.tail[r], f.waiting_tokens[r], f.outstanding[r] = NOBODY, NOBODY, 0, 0
    f.on[r], f.accepting[r], f.end_s[r], f.clock_s[r] = 0, 0, np.inf, now_s
    f.numbers[LOST] += lost
    return lost


@jit
def _free(f: Fleet, slot: int) -> None:
    f.following[slot] = f.numbers[FREE]
    f.numbers[FREE] = slot
