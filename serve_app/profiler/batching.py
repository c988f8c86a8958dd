"""Continuous batching: which sequence gets which tokens in the next step. Pure: no tensors.

As vLLM schedules it: every decoding sequence gets one token, and what is left of the step's budget
goes to a prompt, in chunks if need be. Other than there, a step computes the chunk of one prompt at
most. Decoding sequences always fill the slots 0, 1, ... without a gap.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(kw_only=True, slots=True, eq=False)
class Sequence:
    """A request. `computed_tokens`: those whose keys and values are in the cache, in its `slot`
    (None: it waits, or has ended); `sampled_tokens`: how much of its output there is."""

    prompt_tokens: int
    output_tokens: int
    slot: int | None = None
    computed_tokens: int = 0
    sampled_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One step: `decoding` sequences, the i-th in slot i, and `prompt_tokens` of `prompt`, of which
    `prompt_start` tokens are in the cache already."""

    decoding: tuple[Sequence, ...] = ()
    prompt: Sequence | None = None
    prompt_start: int = 0
    prompt_tokens: int = 0

    @property
    def ends_prompt(self) -> bool:
        """Whether the prompt is computed to its end, so that its first token is sampled."""
        prompt = self.prompt
        return prompt is not None and self.prompt_start + self.prompt_tokens == prompt.prompt_tokens


class Move(NamedTuple):
    """A sequence's cache has to go to another slot: its first `tokens` tokens."""

    source: int
    target: int
    tokens: int


class Batch:
    """The requests of an engine. `max_num_seqs` run at most, in as many slots; a step computes at
    most `max_num_batched_tokens` tokens (above `max_num_seqs`)."""

    def __init__(self, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._waiting: deque[Sequence] = deque()
        self._decoding: list[Sequence] = []
        self._prompt: Sequence | None = None

    @property
    def unfinished(self) -> bool:
        """Whether any sequence waits or runs."""
        return bool(self._waiting or self._decoding or self._prompt)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def clear(self) -> None:
        """Drop all sequences."""
        self._waiting.clear()
        self._decoding.clear()
        self._prompt = None

    def plan(self) -> Plan | None:
        """The next step; None when nothing is to be done."""
        running = len(self._decoding)
        if self._prompt is None and self._waiting and running < self._max_num_seqs:
            self._prompt = self._waiting.popleft()
            self._prompt.slot = running
        decoding, prompt = tuple(self._decoding), self._prompt
        if prompt is None:
            return Plan(decoding=decoding) if decoding else None
        left = prompt.prompt_tokens - prompt.computed_tokens
        return Plan(
            decoding=decoding,
            prompt=prompt,
            prompt_start=prompt.computed_tokens,
            prompt_tokens=min(left, self._max_num_batched_tokens - running),
        )

    def complete(self, plan: Plan) -> tuple[list[Sequence], list[Move]]:
        """Take note that the step is done; returns the sequences that have ended, and the moves to
        make, in order, so that the others fill the first slots."""
        moves: list[Move] = []
        for sequence in plan.decoding:
            sequence.computed_tokens += 1
            sequence.sampled_tokens += 1
        if plan.prompt is not None:
            plan.prompt.computed_tokens += plan.prompt_tokens
        if plan.prompt is not None and plan.ends_prompt:
            plan.prompt.sampled_tokens = 1
            self._prompt = None
            self._place(plan.prompt, len(self._decoding), moves)
            self._decoding.append(plan.prompt)
        ended = [s for s in self._decoding if s.sampled_tokens == s.output_tokens]
        # From the last slot down, so that what moves into a gap never has ended itself.
        for sequence in reversed(ended):
            last = self._decoding.pop()
            if last is not sequence and sequence.slot is not None:
                self._decoding[sequence.slot] = last
                self._place(last, sequence.slot, moves)
            sequence.slot = None
        return ended, moves

    def _place(self, sequence: Sequence, slot: int, moves: list[Move]) -> None:
        if sequence.slot is not None and sequence.slot != slot:
            moves.append(
                Move(source=sequence.slot, target=slot, tokens=sequence.computed_tokens + 1)
            )
        sequence.slot = slot
