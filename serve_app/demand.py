"""What a replica's requests ask for and how they fare: lengths, waiting prompts, missed targets.

The live side of what `policies.sim` keeps of a simulated replica, with the same meaning, from the
engine's step events: first tokens are judged when they come, gaps between tokens at the end.
Memory is bounded by the requests that are under way.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policies.core.lengths import bins_of
from policies.core.observe import RECENT_S
from policies.core.types import SLO
from policies.core.window import Window
from serve_app.engine.step_link import StepEvent

if TYPE_CHECKING:  # it imports vLLM
    from serve_app.engine.tap import FinishedRequest

LENGTHS_KEPT = 512  # as many as a simulated replica remembers
LENGTHS_EVERY_S = 10.0  # how often they are looked at, once they are known
Bins = tuple[float, ...]


@dataclass(slots=True)
class _Prompt:
    """A request without a first token. `rest_tokens`: of its prompt, not computed yet."""

    arrived_s: float
    tokens: int
    rest_tokens: int


class Demand:
    """One replica's requests so far.

    `slo`: the targets in force. A prompt of more than `attainable_tokens` cannot meet them on any
    replica and is not judged (None: all are). `judged`, `late`, `slow` count from the start and
    never fall; `arrived` counts engine requests.
    """

    def __init__(self, slo: SLO | None = None) -> None:
        self.slo = slo or SLO()
        self.attainable_tokens: int | None = None
        self.arrived = self.judged = self.late = self.slow = 0
        self.waiting_prompt_tokens = 0
        self._recent = Window(RECENT_S)
        self._open: set[str] = set()
        self._prompts: dict[str, _Prompt] = {}
        self._steps: deque[list[tuple[str, int]]] = deque()  # (request, context after the step)
        self._prompt_lengths: deque[int] = deque(maxlen=LENGTHS_KEPT)
        self._output_lengths: deque[int] = deque(maxlen=LENGTHS_KEPT)
        self._bins: tuple[Bins | None, Bins | None] = (None, None)
        self._looked_s: float | None = None

    # ---- events of the engine

    def arrive(self, request_id: str, time_s: float, prompt_tokens: int) -> None:
        """The replica took a request at `time_s`."""
        self.arrived += 1
        self._recent.add(time_s)
        self._prompt_lengths.append(prompt_tokens)
        self._open.add(request_id)
        self._prompts[request_id] = _Prompt(time_s, prompt_tokens, prompt_tokens)
        self.waiting_prompt_tokens += prompt_tokens

    def on_step(self, event: StepEvent) -> None:
        """A step begins or ends, requests are gone, or messages were lost: then nothing is known of
        the requests that are under way."""
        if event.kind == "b":
            self._steps.append(self._prompts_in(event) if self._prompts else [])
        elif event.kind == "e":
            for request_id, context_tokens in self._steps.popleft() if self._steps else ():
                self._computed(request_id, context_tokens, event.time_s)
            self._forget(event)
        elif event.kind == "f":
            self._forget(event)
        elif event.kind == "d":
            self._steps.clear()
            self._open.clear()
            self._prompts.clear()
            self.waiting_prompt_tokens = 0

    def _prompts_in(self, event: StepEvent) -> list[tuple[str, int]]:
        """The prompts that a step computes a part of, each with its context after the step."""
        return [
            (share.request_id, share.context_tokens)
            for share in event.shares
            if share.prefill_tokens and share.request_id in self._prompts
        ]

    def _computed(self, request_id: str, context_tokens: int, time_s: float) -> None:
        """A step computed a part of a prompt; the last one gives the first token."""
        prompt = self._prompts.get(request_id)
        if prompt is None:
            return
        rest = max(prompt.tokens - context_tokens, 0)
        self.waiting_prompt_tokens += rest - prompt.rest_tokens
        prompt.rest_tokens = rest
        if not rest:
            del self._prompts[request_id]
            self._judge_first(prompt, time_s)

    def _forget(self, event: StepEvent) -> None:
        """Requests that are gone; one that left after the target had passed was late."""
        self._open.difference_update(event.finished)
        for request_id in event.finished:
            prompt = self._prompts.pop(request_id, None)
            if prompt is not None:
                self.waiting_prompt_tokens -= prompt.rest_tokens
                if event.time_s - prompt.arrived_s > self.slo.ttft_s:
                    self._judge_first(prompt, event.time_s)

    def _judge_first(self, prompt: _Prompt, time_s: float) -> None:
        if self._attainable(prompt.tokens):
            self.judged += 1
            self.late += time_s - prompt.arrived_s > self.slo.ttft_s

    def ended(self, request: FinishedRequest) -> None:
        """The engine has answered a request."""
        self._output_lengths.append(request.output_tokens)
        in_time = request.ttft_s <= self.slo.ttft_s
        slow = request.tpot_s is not None and request.tpot_s > self.slo.tpot_s
        if slow and in_time and self._attainable(request.prompt_tokens):
            self.slow += 1

    def _attainable(self, prompt_tokens: int) -> bool:
        return self.attainable_tokens is None or prompt_tokens <= self.attainable_tokens

    # ---- what is reported

    @property
    def num_open(self) -> int:
        """Requests that the engine has and has not ended."""
        return len(self._open)

    @property
    def mean_prompt_tokens(self) -> float | None:
        """Of the last 512 that arrived."""
        lengths = self._prompt_lengths
        return sum(lengths) / len(lengths) if lengths else None

    def recent_per_s(self, now_s: float) -> float:
        """Arrivals/s over the last 5 s."""
        return self._recent.rate_per_s(now_s)

    def bins(self, now_s: float) -> tuple[Bins | None, Bins | None]:
        """Prompt and output lengths as bins, of the last 512 each; None before the first."""
        known = self._bins[1] is not None
        if known and self._looked_s is not None and 0.0 <= now_s - self._looked_s < LENGTHS_EVERY_S:
            return self._bins
        self._looked_s = now_s
        self._bins = (bins_of(tuple(self._prompt_lengths)), bins_of(tuple(self._output_lengths)))
        return self._bins
