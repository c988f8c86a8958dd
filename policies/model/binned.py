"""Joules of a whole trace from bins of its lengths, and what FLOPs and TDP alone would say.

The comparison of Fernandez et al., Energy Considerations of Large Language Model Inference and
Efficiency Optimizations (ACL 2025, 2025.acl-long.1563), section 4: a request (i, o) goes to the
bin (I, O) of the smallest powers of two that are not below its lengths, and

    E = sum over bins of N(I, O) / B(I, O) x E_batch(I, O)       naive E = TDP / FLOPS_HW x FLOPs

What differs from the paper: E_batch is a fitted model's answer, not one measurement per bin; B is
the batch that the arrivals lead to, where the paper runs offline with the largest batch that fits
the memory; no bin is left out (theirs end at 8192 and 512 tokens), but requests beyond the model's
range are, and are counted; energy may be asked for at a bin's mean lengths besides its upper edges;
FLOPs are 2 per parameter and token (Kaplan et al. 2020, without attention), not a profiler's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.core.errors import OutOfRange
from policies.core.types import Load
from policies.model.batch import Floats
from policies.model.fitted import RANGE_MARGIN, FittedModel, ValidRange
from policies.model.latency import LatencyModel, attended_pairs, mean_context_tokens
from policies.model.power import PowerModel
from policies.model.workload import length_bin

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

WINDOW_S = 60.0  # long against a request, short against the day: the rate is taken as steady in it


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Requests:
    """Requests as columns of one length: arrival in seconds, ascending; tokens, each >= 1; the
    replica that served it, numbered from 0; its measured joules, NaN where not known."""

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    replica: Ints
    joules: Floats

    def __len__(self) -> int:
        return len(self.arrival_s)

    def where(self, chosen: Bools) -> Requests:
        """The requests whose entry in `chosen` is true."""
        return Requests(
            arrival_s=self.arrival_s[chosen],
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            replica=self.replica[chosen],
            joules=self.joules[chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batches:
    """`by_request`: how many requests share the steps of each, itself included, >= 1. `idle_s`:
    time without a step, summed over replicas; None where only the batch is known. `saturated`:
    requests that arrived while more arrived than their replica completes."""

    by_request: Floats
    idle_s: float | None
    saturated: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """The requests with lengths in (half, whole] of `prompt_bin` and `output_bin`, and likewise of
    `batch_bin`. `batch` is the harmonic mean, which is what joules per request are linear in; both
    are None where the batch is not known."""

    prompt_bin: int
    output_bin: int
    batch_bin: int | None
    requests: int
    mean_prompt_tokens: float
    mean_output_tokens: float
    batch: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NaiveEstimate:
    """Energy from FLOPs at the rated speed and the rated draw, of all devices of one replica.

    `utilization_ratio` 1 is the paper's idealized baseline. All values > 0.
    """

    params: float
    peak_flops_per_s: float
    tdp_watts: float
    utilization_ratio: float = 1.0

    def joules(self, tokens: float) -> float:
        """Joules of that many prompt and output tokens: 2 params FLOPs each."""
        flops_per_s = self.peak_flops_per_s * self.utilization_ratio
        return 2.0 * self.params * tokens / flops_per_s * self.tdp_watts


def within_range(valid: ValidRange, requests: Requests) -> tuple[Bools, dict[str, int]]:
    """Which requests a model with this range answers for (up to 1.2x, as FittedModel does), and
    how many it does not, by the reason."""
    longest_prompt = RANGE_MARGIN * valid.max_prompt_tokens
    longest = RANGE_MARGIN * valid.max_context_tokens
    prompt_fits = requests.prompt_tokens <= longest_prompt
    context_fits = requests.prompt_tokens + requests.output_tokens <= longest
    reasons = {
        f"with a prompt above {longest_prompt:g} tokens": int((~prompt_fits).sum()),
        f"with prompt + output above {longest:g} tokens": int((prompt_fits & ~context_fits).sum()),
    }
    return prompt_fits & context_fits, {why: count for why, count in reasons.items() if count}


def fixed_batches(valid: ValidRange, requests: Requests, batch: float) -> Batches:
    """The same batch for every request; OutOfRange below 1 and beyond 1.2x the fitted range."""
    if not 1.0 <= batch <= RANGE_MARGIN * valid.max_num_seqs:
        raise OutOfRange(f"batch is {batch:g}; fitted: 1 to {valid.max_num_seqs}")
    return Batches(by_request=np.full(len(requests), float(batch)), idle_s=None)


def little_batches(latency: LatencyModel, requests: Requests, cap: int) -> Batches:
    """The batch by Little's law, window of about a minute by window, each replica on its own.

    A window's arrival rate and mean lengths give the mean number of running requests m
    (`LatencyModel.steady_state`, at most `cap` and the requests that there are). The number is
    taken as Poisson (M/G/inf: arrivals at random, a step time that hardly depends on the batch), so
    that no step runs for exp(-m) of the time and a running step holds m / (1 - exp(-m)) requests:
    1 for small m, m for large. Requests that all arrive at one moment run together.
    """
    by_request = np.ones(len(requests))
    idle_s, saturated = 0.0, 0
    for replica in np.unique(requests.replica):
        chosen = requests.replica == replica
        mine = requests.where(chosen)
        found = _replica_batches(latency, mine, min(cap, len(mine)))
        by_request[chosen] = found.by_request
        idle_s += found.idle_s or 0.0
        saturated += found.saturated
    return Batches(by_request=by_request, idle_s=idle_s, saturated=saturated)


def _replica_batches(latency: LatencyModel, requests: Requests, cap: int) -> Batches:
    first_s, last_s = float(requests.arrival_s[0]), float(requests.arrival_s[-1])
    if last_s == first_s:
        return Batches(by_request=np.full(len(requests), float(cap)), idle_s=0.0)
    windows = max(1, round((last_s - first_s) / WINDOW_S))
    width_s = (last_s - first_s) / windows
    index = np.minimum((requests.arrival_s - first_s) // width_s, windows - 1).astype(np.int64)
    counts = np.bincount(index, minlength=windows)
    prompts = np.bincount(index, weights=requests.prompt_tokens, minlength=windows)
    outputs = np.bincount(index, weights=requests.output_tokens, minlength=windows)
    batch = np.ones(windows)
    idle_s, saturated = 0.0, 0
    for window, count in enumerate(counts.tolist()):
        if not count:
            idle_s += width_s
            continue
        load = Load(
            arrival_rate_per_s=count / width_s,
            prompt_tokens=prompts[window] / count,
            output_tokens=outputs[window] / count,
        )
        state = latency.steady_state(load, cap)
        busy_ratio = -np.expm1(-state.num_running)
        batch[window] = min(state.num_running / busy_ratio, cap)
        idle_s += (1.0 - busy_ratio) * width_s
        saturated += count if state.saturated else 0
    return Batches(by_request=batch[index], idle_s=float(idle_s), saturated=saturated)


def bin_requests(requests: Requests, batches: Floats | None = None) -> tuple[Bin, ...]:
    """The bins that hold a request, by prompt, output and batch; `batches` one per request."""
    keys = [_bins_of(requests.prompt_tokens), _bins_of(requests.output_tokens)]
    if batches is not None:
        keys.append(_bins_of(np.ceil(batches - 1e-9).astype(np.int64)))
    found, index, counts = np.unique(
        np.column_stack(keys), axis=0, return_inverse=True, return_counts=True
    )
    index = index.ravel()  # its shape differs between versions of numpy
    prompts = np.bincount(index, weights=requests.prompt_tokens) / counts
    outputs = np.bincount(index, weights=requests.output_tokens) / counts
    batch = None if batches is None else counts / np.bincount(index, weights=1.0 / batches)
    return tuple(
        Bin(
            prompt_bin=int(key[0]),
            output_bin=int(key[1]),
            batch_bin=None if batch is None else int(key[2]),
            requests=int(counts[row]),
            mean_prompt_tokens=float(prompts[row]),
            mean_output_tokens=float(outputs[row]),
            batch=None if batch is None else float(batch[row]),
        )
        for row, key in enumerate(found)
    )


def _bins_of(tokens: Ints) -> Ints:
    values, index = np.unique(tokens, return_inverse=True)
    return np.array([length_bin(int(value)) for value in values], dtype=np.int64)[index]


def bin_joules(model: FittedModel, found: Bin, *, at_edges: bool) -> float:
    """Joules of all requests of a bin that has a batch: each as one with the bin's mean lengths, or
    `at_edges` as one with its upper lengths (the paper's way), each cut at what the model answers.
    """
    assert found.batch is not None
    prompt, output = found.mean_prompt_tokens, found.mean_output_tokens
    if at_edges:
        prompt = min(found.prompt_bin, RANGE_MARGIN * model.valid.max_prompt_tokens)
        output = min(found.output_bin, RANGE_MARGIN * model.valid.max_context_tokens)
    return found.requests * request_joules(model.power, prompt, output, found.batch)


def request_joules(
    power: PowerModel, prompt_tokens: float, output_tokens: float, batch: float
) -> float:
    """Joules of one request whose steps are shared by `batch` like it, itself included.

    tout E(b, b kv, 0) / b + E(b, b kv, tin) - E(b, b kv, 0), kv = tin + tout/2: its part of the
    decode steps, and what its prompt adds to the step that computes it with its tin^2/2 pairs.
    """
    load = Load(arrival_rate_per_s=0.0, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
    kv_tokens = batch * mean_context_tokens(load)
    decode_joules = power.step_joules(batch, kv_tokens, 0.0)
    pairs = attended_pairs(prompt_tokens)
    prefill_joules = power.step_joules(batch, kv_tokens, prompt_tokens, pairs) - decode_joules
    return output_tokens * decode_joules / batch + prefill_joules
