"""The `energy.security` block: API keys and limits on requests (docs/security.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_KIB, _MIB = 2**10, 2**20


class SecuritySettings(BaseModel):
    """Who may ask, and how much may be sent.

    Without `api_keys_file` the service is open to whoever reaches it, as Ray's is. The limits hold
    without keys too. 64 MiB is more than what OpenAI takes (50 MB of images, 67 MB in base64), so
    no client of theirs is refused, and a request cannot fill the memory of a node; `null` takes a
    limit away.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_keys_file: Path | None = Field(
        default=None, description="absolute; on every node that runs an ingress or a replica"
    )
    protect: tuple[Literal["openai", "energy"], ...] = Field(
        default=("openai", "energy"),
        min_length=1,
        description="which calls need a key: inference; metrics and energy. Others always do",
    )
    max_body_bytes: int | None = Field(default=64 * _MIB, ge=_KIB)
    max_header_bytes: int | None = Field(
        default=64 * _KIB, ge=_KIB, description="of the request's target and all its headers"
    )

    @field_validator("api_keys_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """A replica's working folder is Ray's choice: a relative path would end up anywhere."""
        if path is not None and not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    @property
    def names_tenants(self) -> bool:
        """Whether every request for inference comes with a key, whose name is the tenant's."""
        return self.api_keys_file is not None and "openai" in self.protect


NO_SECURITY = SecuritySettings(max_body_bytes=None, max_header_bytes=None)
