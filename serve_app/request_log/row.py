"""One request as the request log keeps it: what it cost, how long it took, how it ended.

Never the prompt, never the answer, never an API key: there is no field for them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

SCHEMA = 1  # a reader skips and counts rows of a later one

Outcome = Literal["completed", "aborted", "failed", "rejected"]
TenantKind = Literal["user", "user_hash", "key_hash", "key"]


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One OpenAI response, or one engine request where no response of ours was behind it.

    A completions call with several prompts and a request for several samples (`n`) are one response
    and one row: `num_sequences` engine sequences, their tokens and joules summed; prompt tokens
    once per prompt, as in OpenAI's `usage`. `None` is "not known"; a joule that no meter saw is
    never 0. Of an aborted or failed request the joules are known, the tokens are not.
    """

    schema: int = SCHEMA
    response_id: str
    engine_request_ids: tuple[str, ...]  # as given to the engine; the first few of many
    num_sequences: int  # that the engine has answered
    # UTC: arrival at the replica; the other two by a monotonic clock from there.
    start: datetime
    first_token: datetime | None
    end: datetime
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None  # of the prompt, found in the prefix cache
    ttft_s: float | None  # measured in the engine, of the first sequence to answer
    tpot_s: float | None  # decode time / (output tokens - 1), over all sequences
    queue_s: float | None
    joules: float | None
    idle_joules: float | None  # the part that the replica would have drawn anyway
    prefill_joules: float | None  # prefill + decode = joules
    decode_joules: float | None
    device_joules: dict[str, float]  # by kind: gpu, cpu, dram; their sum = joules
    source: str  # counter, integrated, estimated, joined by "+"; unavailable
    unavailable: str | None  # which meters are missing and why
    method: str | None  # of attribution
    attribution_ratio: float | None  # its part of the energy of the steps it took part in
    coverage_ratio: float | None  # share of the request's work that a meter saw
    model: str
    application: str
    deployment: str
    replica: str
    tenant: str | None
    tenant_kind: TenantKind | None
    outcome: Outcome
    finish_reason: str | None  # OpenAI's word; several sequences: their words joined by "+"

    @property
    def duration_s(self) -> float:
        """Arrival to end, seconds."""
        return (self.end - self.start).total_seconds()


ENCODER = msgspec.json.Encoder()
DECODER = msgspec.json.Decoder(Row)
FIELDS: tuple[str, ...] = Row.__struct_fields__
