"""What an engine step costs in joules, and what a power limit does to speed and draw."""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.core.errors import OutOfRange
from policies.core.types import Load
from policies.model.curve import StepCurve
from policies.model.latency import attended_pairs, mean_context_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class CapResponse:
    """Compute-bound speed under a limit: smax x / (1 + x^n)^(1/n), x = (limit - c0)/(ck - c0).

    H100 94 GB: c0 94 W, ck 432 W, n 4.0, smax 1.017 (fit to arXiv 2603.16164). Needs ck > c0 >= 0.
    That curve is also the clock ratio (arXiv 2603.16164 against 2604.11391). Decode, which is bound
    by memory, runs at min(1, (clock ratio / decode_knee)^decode_exponent). The defaults reproduce
    the measured .98 / .89 / .76 at 67 / 58 / 50 % of the limit (MMBT, batch 32) within .02; nothing
    is measured on data-centre parts, where the knee may be as low as 0.6 (exponent 0.8).
    """

    c0_watts: float
    ck_watts: float
    n: float
    s_max: float
    decode_knee: float = 0.9
    decode_exponent: float = 1.2

    def speed_ratio(self, limit_watts: float) -> float:
        """Speed at `limit_watts` relative to no limit, 0..1, rising. OutOfRange at or below c0."""
        x = (limit_watts - self.c0_watts) / (self.ck_watts - self.c0_watts)
        if not x > 0.0:
            raise OutOfRange(
                f"power limit {limit_watts} W; the fitted response starts above {self.c0_watts} W"
            )
        # x^-n keeps the power finite for very large limits, where the ratio tends to s_max.
        inverse = x ** -min(self.n, 64.0)
        return float(min(1.0, self.s_max / (1.0 + inverse) ** (1.0 / self.n)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """Speeds under a power limit relative to none, 0 < ratio <= 1."""

    prefill_ratio: float = 1.0
    decode_ratio: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PowerModel:
    """Joules per step, of all devices of one replica.

        E = E0 + E1 n + E2 kv + E3 prefill + E4 pairs + E5 max(0, n + prefill - knee)

    with the terms of `LatencyModel`, and the knee of its own fit.
    A step's energy includes the idle draw while it runs; `idle_watts` is paid only while none runs.
    All finite and >= 0. The linear form holds within 6 % for 8B..70B on H100 at n <= 256 (ML.ENERGY
    v3 steady state). `natural_draw_watts`: the most that the replica's device draws when nothing
    limits it, per GPU; None = not known. `cap_response` None = the effect of a limit is not known.
    `num_devices`: the GPUs of one replica, each under its own limit.
    """

    idle_watts: float
    e0_joules_per_step: float
    e1_joules_per_seq: float
    e2_joules_per_kv_token: float
    e3_joules_per_prefill_token: float
    e4_joules_per_attended_pair: float = 0.0
    e5_joules_per_token_beyond_knee: float = 0.0
    knee_tokens: float = 0.0
    natural_draw_watts: float | None = None
    cap_response: CapResponse | None = None
    num_devices: int = 1

    def step_joules(
        self,
        num_seqs: float,
        kv_tokens: float,
        prefill_tokens: float,
        attended_pairs: float = 0.0,
    ) -> float:
        """Joules of one step with this batch, no power limit."""
        return (
            self.e0_joules_per_step
            + self.e1_joules_per_seq * num_seqs
            + self.e2_joules_per_kv_token * kv_tokens
            + self.e3_joules_per_prefill_token * prefill_tokens
            + self.e4_joules_per_attended_pair * attended_pairs
            + self.e5_joules_per_token_beyond_knee
            * max(0.0, num_seqs + prefill_tokens - self.knee_tokens)
        )

    def curve(self, load: Load) -> StepCurve:
        """The mean step's joules over the batch under `load`, no power limit; see
        `LatencyModel.curve`."""
        per_token = self.e3_joules_per_prefill_token + self.e5_joules_per_token_beyond_knee
        pairs = attended_pairs(load.prompt_tokens)
        return StepCurve(
            base=self.e0_joules_per_step,
            per_seq=self.e1_joules_per_seq
            + self.e2_joules_per_kv_token * mean_context_tokens(load),
            per_prompt=per_token * load.prompt_tokens + self.e4_joules_per_attended_pair * pairs,
            output_tokens=load.output_tokens,
            beyond=self.e5_joules_per_token_beyond_knee,
            knee=self.knee_tokens,
        )

    def is_inert(self, limit_watts: float | None) -> bool:
        """Whether the limit changes nothing: there is none, or it lies above the natural draw."""
        if limit_watts is None:
            return True
        return self.natural_draw_watts is not None and limit_watts >= self.natural_draw_watts

    def ceiling_watts(self, limit_watts: float | None) -> float:
        """The most that one replica may draw under the limit; inf where the limit is inert."""
        if limit_watts is None or self.is_inert(limit_watts):
            return math.inf
        return max(limit_watts * self.num_devices, self.idle_watts)

    def speeds(self, limit_watts: float | None) -> Speeds:
        """Prefill and decode speed under the limit; both rise with it, to 1 where it is inert.

        Prefill is compute-bound and follows the clock ratio, taken relative to the natural draw;
        decode as `CapResponse` says. OutOfRange when the response is not known.
        """
        if limit_watts is None or self.is_inert(limit_watts):
            return Speeds()
        if self.cap_response is None:
            raise OutOfRange(
                f"power limit {limit_watts} W; the profile holds no cap_response, so only limits "
                f"at or above natural_draw_watts ({self.natural_draw_watts}) can be answered"
            )
        clock_ratio = self.cap_response.speed_ratio(limit_watts)
        if self.natural_draw_watts is not None:
            clock_ratio /= self.cap_response.speed_ratio(self.natural_draw_watts)
        clock_ratio = min(clock_ratio, 1.0)
        decode_ratio = min(
            1.0,
            (clock_ratio / self.cap_response.decode_knee) ** self.cap_response.decode_exponent,
        )
        return Speeds(prefill_ratio=clock_ratio, decode_ratio=decode_ratio)
