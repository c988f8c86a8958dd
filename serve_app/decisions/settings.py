"""`energy.decision_log`: where decisions are kept beyond the last few hundred."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DecisionLogSettings(BaseModel):
    """A line of JSON per change of mind, on the node of the application's ledger."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    folder: str | None = Field(
        default=None, description="None: jouleserve/decisions in the user's state folder"
    )
    max_bytes: int = Field(
        default=256 << 20, ge=1 << 20, description="of all files of one application"
    )
