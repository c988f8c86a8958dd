"""Before a run: which model does the server serve? And the live counts of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

import aiohttp

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.bench.options import BenchOptions

_PREFLIGHT = aiohttp.ClientTimeout(total=30.0)


@dataclass(slots=True)
class Progress:
    """The live counts of a run, for whoever shows them."""

    scheduled: int = 0
    sent: int = 0
    completed: int = 0
    failed: int = 0
    content_chunks: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def running(self) -> int:
        """Requests under way."""
        return self.sent - self.completed - self.failed


async def served_model(
    session: aiohttp.ClientSession, options: BenchOptions, progress: Progress
) -> str:
    """Return the model to ask for, after seeing that a server answers."""
    url = f"{options.base_url}/v1/models"
    try:
        async with session.get(url, timeout=_PREFLIGHT) as response:
            content = await response.json(content_type=None)
    except ValueError:
        content = None
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EnergyServeError(
            f"no server answers at {options.base_url}: {str(error) or type(error).__name__}"
        ) from error
    entries = content.get("data") if isinstance(content, dict) else None
    listed = [str(e["id"]) for e in entries or () if isinstance(e, dict) and "id" in e]
    if options.model is None:
        if not listed:
            raise ConfigError(f"{url} lists no model; name one with --model")
        return listed[0]
    if listed and options.model not in listed:
        progress.notes.append(f"the server lists no {options.model}, but {', '.join(listed)}")
    return options.model
