"""The inputs of one step of the torch engine: how many rows of which kind, and what is in them.

A CUDA graph repeats its launches on the same memory. So sizes are rounded up to a few, the rows in
excess are padding, which writes to a slot that no sequence has, and inputs always lie in the same
place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from serve_app.profiler.batching import Plan

DECODE_GRAIN = 4  # sequences; below, 1 and 2 as well
PROMPT_GRAIN_TOKENS = 16
CONTEXT_GRAIN_TOKENS = 64
CONTEXT_GRAIN_SHARE = 8  # of the power of two below: a longer context is at most 1/8 too long
# So far the contexts of a batch may grow in a measured window: 3 s of steps of 1.5 ms.
LOOK_AHEAD_TOKENS = 2048
# As vLLM: for longer prompts the launches take less time than what they start.
MAX_GRAPH_PROMPT_TOKENS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The sizes of a step as it is computed. Row i of the first `decode_rows` decodes slot i and
    reads `context_tokens` of its cache; the `prompt_rows` of one prompt follow. `resumes`: the
    prompt's beginning is in the cache already."""

    decode_rows: int = 0
    context_tokens: int = 0
    prompt_rows: int = 0
    resumes: bool = False

    @property
    def rows(self) -> int:
        """Tokens that are computed."""
        return self.decode_rows + self.prompt_rows

    @property
    def samples(self) -> int:
        """Rows for which a next token is sampled: every decoding one, and the prompt's last."""
        return self.decode_rows + (self.prompt_rows > 0)

    @property
    def fits_graph(self) -> bool:
        """Whether such a step may be a CUDA graph."""
        return self.prompt_rows <= MAX_GRAPH_PROMPT_TOKENS and not self.resumes


class Rows(NamedTuple):
    """A step's inputs, int64. Per row: the slot and the position of its token. Per sample: its row,
    and the slot and position that the sampled token goes to."""

    slots: Any
    positions: Any
    sampled: Any
    target_slots: Any
    target_positions: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Rounds the sizes of a step up to those that it is computed with."""

    max_num_seqs: int
    max_model_len: int

    def layout_of(self, plan: Plan) -> Layout:
        """The layout of a plan."""
        context = max((sequence.computed_tokens + 1 for sequence in plan.decoding), default=0)
        layout = self._layout(len(plan.decoding), context, plan.prompt_tokens)
        if plan.prompt_start == 0:
            return layout
        return replace(layout, prompt_rows=plan.prompt_tokens, resumes=True)

    def layouts_for(self, num_seqs: int, context_tokens: int, prompt_tokens: int) -> list[Layout]:
        """Those of a batch from its first prompt on: `num_seqs` prompts of `context_tokens` one by
        one, while those before decode; then all of them decode, alone or beside a prompt of
        `prompt_tokens` in each step, until they have grown by LOOK_AHEAD_TOKENS or end one by one.
        """
        found = [self._layout(n, context_tokens + n, context_tokens) for n in range(num_seqs)]
        first = context_tokens + num_seqs
        last = min(first + LOOK_AHEAD_TOKENS, self.max_model_len)
        sizes = [(num_seqs, context) for context in range(first, last)]
        if last == self.max_model_len:
            sizes += ((n, last) for n in range(num_seqs))
        found += (self._layout(*size, prompt) for size in sizes for prompt in {0, prompt_tokens})
        return [layout for layout in dict.fromkeys(found) if layout.rows]

    def decode_rows(self, num_seqs: int) -> int:
        """Rows for so many decoding sequences: 0, 1, 2, 4, 8, 12, ... up to `max_num_seqs`."""
        return num_seqs if num_seqs <= 2 else min(_up(num_seqs, DECODE_GRAIN), self.max_num_seqs)

    def context_tokens(self, longest: int) -> int:
        """How much of a slot is read for contexts of up to `longest`: a multiple of 64, from 1024
        on of an eighth of the power of two below, up to `max_model_len`."""
        power = 1 << max(longest - 1, 1).bit_length() - 1
        grain = max(CONTEXT_GRAIN_TOKENS, power // CONTEXT_GRAIN_SHARE)
        return min(_up(longest, grain), self.max_model_len)

    def _layout(self, num_seqs: int, longest: int, prompt_tokens: int) -> Layout:
        exact = Layout(
            decode_rows=self.decode_rows(num_seqs),
            context_tokens=self.context_tokens(longest) if num_seqs else 0,
            prompt_rows=prompt_tokens,
        )
        rounded = replace(exact, prompt_rows=_up(prompt_tokens, PROMPT_GRAIN_TOKENS))
        return rounded if rounded.fits_graph else exact


def _up(value: int, grain: int) -> int:
    return -(-value // grain) * grain


class StepInputs:
    """Inputs in fixed buffers, one on the host and one on the device, for steps of `max_tokens` and
    their padding. `padding_slot`: where rows in excess write."""

    def __init__(self, max_tokens: int, max_samples: int, padding_slot: int, device: Any) -> None:
        size = 2 * (max_tokens + DECODE_GRAIN + PROMPT_GRAIN_TOKENS) + 3 * max_samples
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._numbers = self._host.numpy()
        self._device = torch.zeros(size, dtype=torch.int64, device=device)
        self._padding_slot = padding_slot

    def rows(self, layout: Layout) -> Rows:
        """The inputs on the device, as views."""
        return _split(self._device, layout)

    def write(self, layout: Layout, plan: Plan) -> None:
        """Bring a plan's inputs to the device; an empty plan gives padding alone."""
        rows = _split(self._numbers, layout)
        for slots in (rows.slots, rows.target_slots):
            slots[:] = self._padding_slot
        for zeros in (rows.positions, rows.target_positions):
            zeros[:] = 0
        rows.sampled[:] = np.arange(layout.samples)
        running = len(plan.decoding)
        rows.slots[:running] = rows.target_slots[:running] = np.arange(running)
        rows.positions[:running] = [sequence.computed_tokens for sequence in plan.decoding]
        rows.target_positions[:running] = rows.positions[:running] + 1
        if plan.prompt is not None:
            _write_prompt(rows, layout.decode_rows, plan, plan.prompt.slot)
        used = 2 * layout.rows + 3 * layout.samples
        self._device[:used].copy_(self._host[:used], non_blocking=True)


def _write_prompt(rows: Rows, first: int, plan: Plan, slot: int | None) -> None:
    start, end = plan.prompt_start, plan.prompt_start + plan.prompt_tokens
    rows.slots[first : first + plan.prompt_tokens] = slot
    rows.positions[first : first + plan.prompt_tokens] = np.arange(start, end)
    rows.sampled[-1] = first + plan.prompt_tokens - 1
    if plan.ends_prompt:  # else the sample is of no use: the prompt goes on
        rows.target_slots[-1] = slot
        rows.target_positions[-1] = end


def _split(buffer: Any, layout: Layout) -> Rows:
    rows, samples = layout.rows, layout.samples
    ends = np.cumsum((rows, rows, samples, samples, samples)).tolist()
    return Rows(*(buffer[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)))
