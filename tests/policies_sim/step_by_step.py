"""The same scheduler written the plain way, one step at a time: what the compiled kernel must equal."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Request:
    order: int
    arrival_s: float
    prompt: int
    output: int
    made: int = 0
    computed: int = 0
    first_s: float = math.nan
    end_s: float = math.nan
    replica: int = -1

    @property
    def context(self):
        return self.prompt + self.made


@dataclass
class Replica:
    latency: object
    power: object
    cap: int
    budget: int
    capacity: int
    clock_s: float = 0.0
    end_s: float = math.inf
    waiting: list = field(default_factory=list)
    running: list = field(default_factory=list)  # decoding
    partial: Request | None = None
    chunks: list = field(default_factory=list)
    joules: float = 0.0
    idle_joules: float = 0.0
    step_joules: float = 0.0
    steps: int = 0
    preemptions: int = 0

    @property
    def outstanding(self):
        return (
            len(self.waiting)
            + len(self.running)
            + (self.partial is not None)
            + sum(whole for _, _, whole in self.chunks)
        )

    @property
    def kv(self):
        return sum(r.context - 1 for r in self.running)

    def begin(self, now_s):
        if now_s > self.clock_s and self.end_s == math.inf:
            self.idle_joules += self.power.idle_watts * (now_s - self.clock_s)
        self.clock_s = now_s
        held = self.partial.computed if self.partial else 0
        admits = True
        while len(self.running) > 1 and self.kv + held + len(self.running) > self.capacity:
            last = max(self.running, key=lambda r: r.order)
            self.running.remove(last)
            last.computed = 0
            self.waiting.insert(0, last)
            self.preemptions += 1
            admits = False
        self.chunks = []
        budget = self.budget - len(self.running)
        room = self.capacity - self.kv - held - len(self.running)
        alone = not self.running

        def take(request, budget, room):
            tokens = min(request.context - request.computed, budget)
            if not alone or self.chunks:
                tokens = min(tokens, room)
            if tokens <= 0:
                self.partial = request
                return 0
            request.computed += tokens
            whole = request.computed == request.context
            self.chunks.append((request, tokens, whole))
            self.partial = None if whole else request
            return tokens

        if self.partial:
            used = take(self.partial, budget, room)
            budget, room = budget - used, room - used
        while admits and self.partial is None and self.waiting and budget > 0:
            finishing = sum(whole for _, _, whole in self.chunks)
            if len(self.running) + finishing >= self.cap:
                break
            request = self.waiting[0]
            if min(request.context, budget) > room and not (alone and not self.chunks):
                break
            self.waiting.pop(0)
            request.computed = 0
            used = take(request, budget, room)
            budget, room = budget - used, room - used
        if not self.chunks and not self.running:
            self.end_s = math.inf
            return
        n = len(self.running) + len(self.chunks)
        kv = self.kv + sum(r.computed for r, _, _ in self.chunks)
        prefill = sum(tokens for _, tokens, _ in self.chunks)
        pairs = sum(0.5 * (r.computed**2 - (r.computed - t) ** 2) for r, t, _ in self.chunks)
        self.end_s = now_s + self.latency.step_time_s(n, kv, prefill, pairs)
        self.step_joules = self.power.step_joules(n, kv, prefill, pairs)

    def finish(self):
        now_s, ended = self.end_s, []
        self.joules += self.step_joules
        self.steps += 1
        for request in self.running:
            request.made += 1
        for request, _, whole in self.chunks:
            if whole:
                request.made += 1
                self.running.append(request)
                if math.isnan(request.first_s):
                    request.first_s = now_s
        self.chunks = []
        for request in list(self.running):
            if request.made >= request.output:
                request.end_s = now_s
                self.running.remove(request)
                ended.append(request)
        self.clock_s, self.end_s = now_s, math.inf
        return ended


def run(replicas, requests, until_s=math.inf):
    """Least outstanding, ties to the lower index. Returns the requests that ended, in order."""
    ended, pending = [], sorted(requests, key=lambda r: r.arrival_s)
    while True:
        index = min(range(len(replicas)), key=lambda k: replicas[k].end_s)
        ends_s = replicas[index].end_s
        arrives_s = pending[0].arrival_s if pending else math.inf
        if min(ends_s, arrives_s) > until_s or min(ends_s, arrives_s) == math.inf:
            return ended
        if ends_s <= arrives_s:
            ended += replicas[index].finish()
            replicas[index].begin(ends_s)
        else:
            request = pending.pop(0)
            chosen = min(range(len(replicas)), key=lambda k: replicas[k].outstanding)
            request.replica = chosen
            replicas[chosen].waiting.append(request)
            if replicas[chosen].end_s == math.inf:
                replicas[chosen].begin(arrives_s)
