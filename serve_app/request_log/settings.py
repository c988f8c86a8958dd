"""The `energy.request_log` block: where the rows go, for how long, and who a tenant is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_MIB = 2**20


class RequestLogSettings(BaseModel):
    """The request log of each replica.

    On by default, like the access log of a web server: an operator who is asked on Monday what
    Sunday's requests cost cannot switch it on afterwards. What makes that safe is that it is small
    (`max_bytes` bounds the whole folder, `max_age_days` every row), holds no text of prompts or
    answers, and never delays or fails a request. `enabled: false` turns it off; `tenant: hashed` or
    `off` keeps the OpenAI `user` field out, for callers that put names into it.

    Each node writes its own folder; replicas on one node, and nodes on a shared mount, may share
    one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    folder: str | None = Field(
        default=None,
        description="absolute, or from ~; default $XDG_STATE_HOME/jouleserve/requests",
    )
    format: Literal["jsonl"] = "jsonl"
    max_bytes: int = Field(default=1024 * _MIB, ge=_MIB, description="of the folder, all replicas")
    max_file_bytes: int = Field(
        default=16 * _MIB, ge=_MIB // 16, description="a larger file is closed and compressed"
    )
    max_age_days: float = Field(default=30.0, gt=0.0, description="older rows are deleted")
    tenant: Literal["as_given", "hashed", "off"] = Field(
        default="as_given", description="what becomes of the OpenAI `user` field"
    )

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: str | None) -> str | None:
        """A replica's working folder is Ray's choice: a relative path would end up anywhere."""
        if folder is not None and not Path(folder).expanduser().is_absolute():
            raise ValueError("must be an absolute path, or start with ~")
        return folder

    @model_validator(mode="after")
    def _room_for_rotation(self) -> Self:
        if self.max_bytes < 4 * self.max_file_bytes:
            raise ValueError("max_bytes must be at least 4 times max_file_bytes")
        return self
