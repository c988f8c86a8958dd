"""Random draws from a fleet's own state, and each replica's heap of running sequences."""

from __future__ import annotations

import math

import numpy as np

from policies.sim.fleet_state import Fleet, jit


@jit
def uniform(f: Fleet) -> float:
    """xorshift64*, 0 < u < 1."""
    x = f.random[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    f.random[0] = x
    bits = (x * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(11)
    return (float(bits) + 0.5) / 9007199254740992.0


@jit
def below(f: Fleet, count: int) -> int:
    """A whole number from 0 to `count` - 1."""
    return int(uniform(f) * count)


@jit
def normal(f: Fleet) -> float:
    """Box and Muller's."""
    return math.sqrt(-2.0 * math.log(uniform(f))) * math.cos(2.0 * math.pi * uniform(f))


@jit
def push(f: Fleet, r: int, step: int, slot: int) -> None:
    """A sequence that ends after that step begins to decode."""
    place = f.running[r]
    f.running[r] = place + 1
    f.heap_step[r, place], f.heap_slot[r, place] = step, slot
    _up(f, r, place)


@jit
def remove(f: Fleet, r: int, place: int) -> None:
    """Take the sequence at that place of the heap out."""
    last = f.running[r] - 1
    f.running[r] = last
    if place == last:
        return
    f.heap_step[r, place], f.heap_slot[r, place] = f.heap_step[r, last], f.heap_slot[r, last]
    while True:
        least, left = place, 2 * place + 1
        for child in (left, left + 1):
            if child < last and f.heap_step[r, child] < f.heap_step[r, least]:
                least = child
        if least == place:
            break
        _swap(f, r, place, least)
        place = least
    _up(f, r, place)


@jit
def _up(f: Fleet, r: int, place: int) -> None:
    while place > 0:
        parent = (place - 1) // 2
        if f.heap_step[r, parent] <= f.heap_step[r, place]:
            break
        _swap(f, r, place, parent)
        place = parent


@jit
def _swap(f: Fleet, r: int, one: int, two: int) -> None:
    step, slot = f.heap_step[r, one], f.heap_slot[r, one]
    f.heap_step[r, one], f.heap_slot[r, one] = f.heap_step[r, two], f.heap_slot[r, two]
    f.heap_step[r, two], f.heap_slot[r, two] = step, slot
