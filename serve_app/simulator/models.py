"""The two models of a run: the truth that is simulated, and what a policy believes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from policies.core.errors import ConfigError
from policies.model.fitted import FittedModel
from serve_app.deciders import load_profile
from serve_app.planner.question import above_0

CAP_RESPONSES = ("profile", "h100")
H100_DECODE_KNEE, H100_DECODE_EXPONENT = 0.6, 0.8  # PHYSICS.md §3: (clock ratio / .6)^.8
LIMIT_STEP_WATTS = 50.0
FASTEST = 0.99  # a limit that leaves more than this of the speed is none worth setting


@lru_cache(maxsize=16)
def truth_of(profile: str, cap_response: str = "profile") -> FittedModel:
    """The profile's model; with `h100`, decode under a power limit as the prior for data-centre
    parts says, which nothing has measured. Raises ConfigError."""
    try:
        model = load_profile(profile)
    except ConfigError as error:
        raise ConfigError(str(error).replace("energy.profile", "--profile", 1)) from None
    assert model is not None, "a named profile is loaded"
    if cap_response not in CAP_RESPONSES:
        raise ConfigError(f"--cap-response {cap_response!r}: allowed: {', '.join(CAP_RESPONSES)}")
    response = model.power.cap_response
    if cap_response == "profile":
        return model
    if response is None:
        raise ConfigError(f"--cap-response h100: profile {model.name} holds no cap_response")
    response = replace(response, decode_knee=H100_DECODE_KNEE, decode_exponent=H100_DECODE_EXPONENT)
    return replace(model, power=replace(model.power, cap_response=response))


def belief_of(truth: FittedModel, speed: float = 1.0, energy: float = 1.0) -> FittedModel:
    """What a policy believes: steps run at `speed` times the true speed and cost `energy` times the
    true joules. Raises ConfigError."""
    above_0("--belief-speed", speed)
    above_0("--belief-energy", energy)
    return truth.corrected(step_time_ratio=1.0 / speed, energy_ratio=energy)


def default_limits(model: FittedModel) -> tuple[float, ...]:
    """The multiples of 50 W from twice the draw at which the response to a limit starts up to where
    a limit still costs 1 % of the prefill speed (an H100: 200 to 600 W). Empty where the effect of
    a limit or the natural draw is not known."""
    power = model.power
    if power.cap_response is None or power.natural_draw_watts is None:
        return ()
    first = math.ceil(2.0 * power.cap_response.c0_watts / LIMIT_STEP_WATTS)
    last = math.ceil(power.natural_draw_watts / LIMIT_STEP_WATTS)
    found = (place * LIMIT_STEP_WATTS for place in range(max(first, 1), last))
    return tuple(watts for watts in found if power.speeds(watts).prefill_ratio < FASTEST)
