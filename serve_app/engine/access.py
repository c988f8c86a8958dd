"""Access to the engine behind a Ray LLM server: the only file that knows how to reach it.

Private names touched (tests/contracts): `VLLMEngine._engine_client` (Ray), `AsyncLLM.engine_core`,
`call_utility_async`, `generate`, and the shape of vLLM's internal request ids.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from policies.core.errors import ActuationRefused, EngineDead

# "3_" marks the third of n samples; vLLM appends "-" and 8 hex digits to what the caller named.
_INTERNAL_ID = re.compile(r"^(?:\d+_)?(?P<external>.+?)(?:-[0-9a-f]{8})?$")
_COMPLETION_INDEX = re.compile(r"^(?P<response>cmpl-.+)-\d+$")


class CapState(NamedTuple):
    """The cap in force, the requests running now, and the engine's start-time capacity."""

    max_num_active_seqs: int
    num_running: int
    max_num_seqs: int


def external_id(internal_id: str) -> str:
    """The id that the caller gave, from vLLM's internal id."""
    match = _INTERNAL_ID.match(internal_id)
    return match["external"] if match else internal_id


def response_id(request_id: str) -> str:
    """The `id` of the OpenAI response that an engine request (by its external id) belongs to: a
    completions call with several prompts makes several engine requests, "cmpl-X-0", "cmpl-X-1"."""
    match = _COMPLETION_INDEX.match(request_id)
    return match["response"] if match else request_id


def engine_client(engine: Any) -> Any:
    """VLLM's AsyncLLM behind Ray's VLLMEngine."""
    client = getattr(engine, "_engine_client", None)
    if client is None:
        raise EngineDead("the engine has no vLLM client (not started, or another engine class)")
    return client


async def set_max_num_active_seqs(engine: Any, cap: int | None) -> CapState:
    """Set the run-time cap (None = only read it). Raises ActuationRefused when the engine runs
    without our scheduler."""
    core = engine_client(engine).engine_core
    try:
        answer = await core.call_utility_async("jouleserve_set_max_num_active_seqs", cap)
    except Exception as error:
        raise ActuationRefused(f"the engine does not take a run-time cap: {error}") from error
    return CapState(*answer)


async def set_step_tap(engine: Any, *, on: bool) -> None:
    """Switch the scheduler's step messages on or off, to measure what they cost. Raises
    ActuationRefused when the engine runs without our scheduler."""
    core = engine_client(engine).engine_core
    try:
        await core.call_utility_async("jouleserve_set_step_tap", on)
    except Exception as error:
        raise ActuationRefused(f"the engine has no step tap: {error}") from error


async def warm_up(engine: Any, prompt_tokens: int = 16, output_tokens: int = 4) -> None:
    """Run short requests, greedy and sampled, so that the first real one does not pay for lazy
    initialisation (24 s measured on a CPU engine without this)."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": list(range(1, prompt_tokens + 1))}
    for settings in ({"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9, "top_k": 20}):
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True, **settings)
        async for _ in engine_client(engine).generate(prompt, sampling, WARM_UP_ID):
            pass


WARM_UP_ID = "jouleserve-warm-up"
