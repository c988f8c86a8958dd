"""Engine features as variants of one profile run: which there are, and how they compare."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

import yaml

from policies.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policies.model.fitted import FittedModel

COMPARED_BATCHES = (1, 8, 32, 128)
COMPARED_CONTEXT_TOKENS = 256
COMPARED_PROMPT_TOKENS = 512
# The sweep sets these itself, or they would change what it measures.
_OURS = frozenset(
    {"model", "max_num_seqs", "max_model_len", "scheduler_cls", "disable_log_stats", "seed"}
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One engine: its arguments beyond the usual, and the tag that its files bear."""

    tag: str = ""
    engine_args: Mapping[str, Any] = field(default_factory=dict)


def parse_variants(fixed: Sequence[str], varied: Sequence[str]) -> list[Variant]:
    """Every combination of `--vary KEY=[a, b]`, each with all of `--engine-arg KEY=VALUE`.

    Values are YAML. ConfigError names the option and what is allowed.
    """
    common = dict(_pair("--engine-arg", text) for text in fixed)
    axes = []
    for text in varied:
        key, values = _pair("--vary", text)
        if not isinstance(values, list) or len(values) < 2:
            raise ConfigError(f"--vary {text}: allowed: KEY=[VALUE, VALUE, ...], two or more")
        if key in common:
            raise ConfigError(f"--vary {key}: is fixed by --engine-arg {key} already")
        axes.append([(key, value) for value in values])
    variants = []
    for chosen in product(*axes):
        tag = "+".join(f"{key}={_plain(value)}" for key, value in chosen)
        variants.append(Variant(tag=tag, engine_args={**common, **dict(chosen)}))
    tags = [variant.tag for variant in variants]
    if len(set(tags)) < len(tags):
        raise ConfigError("--vary: two values are the same")
    return variants


def check_engine_args(variants: Sequence[Variant], known: Sequence[str]) -> None:
    """ConfigError for an argument that the engine does not have, or that the sweep sets itself."""
    for key in dict.fromkeys(key for variant in variants for key in variant.engine_args):
        if key in _OURS:
            raise ConfigError(f"{key}: the sweep sets it; allowed: any other engine argument")
        if key == "speculative_config":
            raise ConfigError(
                "speculative_config: with it a step makes as many tokens as the text allows, and "
                "the sweep's text is random; compare it with `jouleserve bench` on your own prompts"
            )
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or ["see vLLM's EngineArgs"]
            raise ConfigError(f"{key}: no such engine argument; near: {', '.join(near)}")


def comparison(models: Sequence[tuple[Variant, FittedModel]]) -> list[dict[str, Any]]:
    """One row per variant: step time and joules per token by batch, a prompt's time, the error."""
    rows = []
    for variant, model in models:
        row: dict[str, Any] = {"variant": variant.tag or "as given"}
        for batch in (b for b in COMPARED_BATCHES if b <= model.valid.max_num_seqs):
            kv = batch * COMPARED_CONTEXT_TOKENS
            row[f"step_s_at_{batch}"] = model.latency.step_time_s(batch, kv, 0)
            row[f"joules_per_token_at_{batch}"] = model.power.step_joules(batch, kv, 0) / batch
        prompt = min(COMPARED_PROMPT_TOKENS, model.valid.max_prompt_tokens)
        row["prompt_tokens"] = prompt
        row["prompt_s"] = model.latency.step_time_s(1, prompt, prompt, 0.5 * prompt * prompt)
        row["held_out_median_ratio"] = model.residuals.step_time_median_ratio
        rows.append(row)
    return rows


def _pair(option: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"{option} {text!r}: allowed: KEY=VALUE")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} {text!r}: the value is no YAML: {error}") from None


def _plain(value: Any) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", str(value)).strip("_").lower()
