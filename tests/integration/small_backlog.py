"""Our scheduler with a backlog of 4 KiB, so that a reader that lags behind costs messages soon."""

from serve_app.engine import step_link
from serve_app.engine.scheduler import capped_scheduler

step_link._MAX_BACKLOG_BYTES = 4096

__all__ = ["capped_scheduler"]
