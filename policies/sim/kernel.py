"""Continuous batching of a whole fleet, event by event, compiled. Times in s, energy in J.

Each replica runs steps as vLLM's scheduler makes them: every running sequence decodes one token;
what is left of the token budget goes to the prompt that was cut last, then to waiting ones, first
come first served, while the cap and the KV cache have room. A prompt that is complete gives its
first token at the end of that step. Where the cache is full, the sequence that came last gives up
its place, goes to the head of the line, and computes its context again.

Steps without a prompt that have the same sequences are one *stretch*: with n sequences and kv
context tokens, K of them take

    K (t0 + a n + b kv + d max(0, n - knee)) + b n K (K - 1) / 2

so nothing is lost by taking them together. An arrival that has a place, a completion, or a new cap
or limit ends a stretch at the end of the step that is under way.

The state is a set of arrays (`Fleet`), so that the same bits come out on every run. Requests live
in slots; those that ended are handed out in `Fleet.done_*` and their slots used again: memory does
not grow with the trace.
"""

from __future__ import annotations

import numpy as np

from policies.sim.fleet_parts import below
from policies.sim.fleet_state import (
    DONE,
    DONE_FULL,
    FREE,
    HELD,
    HELD_HEAD,
    HELD_TAIL,
    IDLE_WATTS,
    NEEDS_ARRIVALS,
    NOBODY,
    ORDER,
    PACKED,
    POWER_OF_TWO,
    REACHED,
    RING,
    ROUTER,
    SLOTS_FULL,
    Arrivals,
    Fleet,
    Floats,
    Ints,
    jit,
)
from policies.sim.fleet_steps import begin, cut, finish, idle_until, stretch_joules

SPAN = 32  # replicas that are looked through at once
FULL = np.iinfo(np.int64).max


@jit
def advance(
    f: Fleet, until_s: float, arrivals: Arrivals, first: int, last: bool
) -> tuple[int, int]:
    """Run to `until_s` or as far as the arrivals reach, the next of which is `first`.

    Returns what stopped it and the next arrival. REACHED: all up to and at `until_s` has happened;
    NEEDS_ARRIVALS: the given ones are used up and (`last` False) more may come before `until_s`;
    DONE_FULL: take what has ended and call again; SLOTS_FULL: too many requests under way.
    """
    room = len(f.done_end_s) - f.heap_step.shape[1] - 1
    soonest, fewest = _looked(f)
    while True:
        if f.numbers[DONE] > room:
            return DONE_FULL, first
        span = int(np.argmin(soonest))
        ends_s = soonest[span]
        if first < len(arrivals.times_s):
            arrives_s = arrivals.times_s[first]
        elif last:
            arrives_s = np.inf
        else:
            return NEEDS_ARRIVALS, first
        if min(ends_s, arrives_s) > until_s:
            return REACHED, first
        if ends_s <= arrives_s:
            replica = span * SPAN
            while f.end_s[replica] != ends_s:
                replica += 1
            finish(f, replica)
            begin(f, replica, ends_s)
            _look(f, span, soonest, fewest)
        else:
            if f.numbers[FREE] == NOBODY:
                return SLOTS_FULL, first
            replica = _route(f, fewest)
            _arrive(
                f, replica, arrives_s, arrivals.prompt_tokens[first], arrivals.output_tokens[first]
            )
            if replica != NOBODY:
                _look(f, replica // SPAN, soonest, fewest)
            first += 1


@jit
def _looked(f: Fleet) -> tuple[Floats, Ints]:
    """All spans, as `_look` has them."""
    spans = -(-len(f.end_s) // SPAN)
    soonest, fewest = np.empty(spans), np.empty(spans, np.int64)
    for span in range(spans):
        _look(f, span, soonest, fewest)
    return soonest, fewest


@jit
def _look(f: Fleet, span: int, soonest: Floats, fewest: Ints) -> None:
    """Write down when the first of a span's replicas ends its stretch (inf: all idle), and the
    fewest outstanding requests of those that accept (FULL: none does). Each event changes one
    replica, so that of a large fleet one span is looked through and not all of it."""
    ends_s, least = np.inf, FULL
    for r in range(span * SPAN, min((span + 1) * SPAN, len(f.end_s))):
        ends_s = min(ends_s, f.end_s[r])
        if f.accepting[r]:
            least = min(least, f.outstanding[r])
    soonest[span], fewest[span] = ends_s, least


@jit
def set_cap(f: Fleet, replica: int, cap: int, now_s: float) -> None:
    """A new cap; it holds from the end of the step that is under way."""
    f.cap[replica] = cap
    _renew(f, replica, now_s)


@jit
def set_row(f: Fleet, replica: int, row: int, now_s: float) -> None:
    """A new power limit, by its row of coefficients; as `set_cap`."""
    if f.row[replica] != row:
        if f.end_s[replica] < np.inf:
            cut(f, replica, now_s)
        # The step under way ends as it began: its time is fixed, its draw is the new limit's.
        f.row[replica] = row


@jit
def accept(f: Fleet, replica: int, now_s: float) -> None:
    """The replica is there, may be chosen from now on, and takes what nobody could. Its idle draw
    counts from now, or from before if it was there already (draining, say)."""
    if f.on[replica] == 0:
        f.on[replica], f.clock_s[replica] = 1, now_s
    f.accepting[replica] = 1
    soonest, fewest = _looked(f)
    while f.numbers[HELD_HEAD] != NOBODY:
        slot = f.numbers[HELD_HEAD]
        f.numbers[HELD_HEAD] = f.following[slot]
        f.numbers[HELD] -= 1
        chosen = _route(f, fewest)
        _give(f, chosen, slot, now_s)
        _look(f, chosen // SPAN, soonest, fewest)
    f.numbers[HELD_TAIL] = NOBODY


@jit
def release(f: Fleet, replica: int, now_s: float) -> None:
    """An idle replica is gone: it draws nothing from now on."""
    idle_until(f, replica, now_s)
    f.on[replica], f.accepting[replica] = 0, 0


@jit
def settle_idle(f: Fleet, now_s: float) -> None:
    """Book the idle energy of idle replicas up to now."""
    for replica in range(len(f.end_s)):
        if f.on[replica] and f.end_s[replica] == np.inf:
            idle_until(f, replica, now_s)


@jit
def joules_at(f: Fleet, now_s: float, out: Floats) -> None:
    """What a meter on each replica would show at `now_s`: within a stretch by its mean draw."""
    for r in range(len(f.end_s)):
        out[r] = f.active_joules[r] + f.idle_joules[r]
        if f.on[r] == 0:
            continue
        if f.end_s[r] == np.inf:
            watts = f.coefficients[f.row[r], IDLE_WATTS]
            out[r] += watts * max(0.0, now_s - f.clock_s[r])
        else:
            share = (now_s - f.clock_s[r]) / (f.end_s[r] - f.clock_s[r])
            out[r] += stretch_joules(f, r) * min(max(share, 0.0), 1.0)


@jit
def _arrive(f: Fleet, replica: int, now_s: float, prompt: int, output: int) -> None:
    """A request for a replica, or for the line before all of them (NOBODY)."""
    slot = f.numbers[FREE]
    f.numbers[FREE] = f.following[slot]
    f.arrival_s[slot], f.first_s[slot] = now_s, np.nan
    f.prompt_tokens[slot], f.total_tokens[slot], f.made_tokens[slot] = prompt, output, 0
    f.order[slot] = f.numbers[ORDER]
    f.numbers[ORDER] += 1
    if replica != NOBODY:
        _give(f, replica, slot, now_s)
        return
    f.following[slot] = NOBODY
    f.numbers[HELD] += 1
    if f.numbers[HELD_TAIL] == NOBODY:
        f.numbers[HELD_HEAD] = slot
    else:
        f.following[f.numbers[HELD_TAIL]] = slot
    f.numbers[HELD_TAIL] = slot


@jit
def _route(f: Fleet, fewest: Ints) -> int:
    """The replica for a request, or NOBODY. `fewest` as `_look` has it. Ties go to the lower
    index."""
    if f.numbers[ROUTER] == PACKED:
        return _packed(f)
    if f.numbers[ROUTER] == POWER_OF_TWO:
        accepting = int(f.accepting.sum())
        if accepting > 2:
            one, two = below(f, accepting), below(f, accepting - 1)
            if two >= one:
                two += 1
            return _fewer_of(f, one, two)
    span = int(np.argmin(fewest))
    if fewest[span] == FULL:
        return NOBODY
    replica = span * SPAN
    while not f.accepting[replica] or f.outstanding[replica] != fewest[span]:
        replica += 1
    return replica


@jit
def _packed(f: Fleet) -> int:
    """The first replica that may have more; else, of those with the fewest prompt tokens waiting,
    the one with the fewest requests."""
    best = NOBODY
    for r in range(len(f.accepting)):
        if not f.accepting[r]:
            continue
        here = f.waiting_tokens[r]
        if f.outstanding[r] < f.pack_seqs[r] and here < f.pack_tokens[r]:
            return int(r)
        fewest = f.waiting_tokens[best] if best != NOBODY else here + 1
        fewer = best != NOBODY and f.outstanding[r] < f.outstanding[best]
        if here < fewest or (here == fewest and fewer):
            best = r
    return best


@jit
def _fewer_of(f: Fleet, one: int, two: int) -> int:
    """Of the one-th and the two-th accepting replica the one with fewer outstanding requests."""
    best, fewest, seen = NOBODY, 0, 0
    for replica in range(len(f.accepting)):
        if f.accepting[replica]:
            if seen in (one, two) and (best == NOBODY or f.outstanding[replica] < fewest):
                best, fewest = replica, f.outstanding[replica]
            seen += 1
    return best


@jit
def _give(f: Fleet, r: int, slot: int, now_s: float) -> None:
    """Put a request at the end of a replica's line."""
    f.outstanding[r] += 1
    f.ring_prompt[r, f.arrived[r] % RING] = f.prompt_tokens[slot]
    f.arrived[r] += 1
    f.waiting_tokens[r] += f.prompt_tokens[slot]
    f.following[slot] = NOBODY
    if f.waiting[r] == 0:
        f.head[r] = slot
    else:
        f.following[f.tail[r]] = slot
    f.tail[r] = slot
    f.waiting[r] += 1
    _renew(f, r, now_s)


@jit
def _renew(f: Fleet, r: int, now_s: float) -> None:
    """Something may start: at once where the replica is idle, else at the end of the step."""
    if f.end_s[r] == np.inf:
        if f.waiting[r] > 0:
            begin(f, r, now_s)
    elif f.waiting[r] > 0 and f.running[r] < f.cap[r]:
        cut(f, r, now_s)
