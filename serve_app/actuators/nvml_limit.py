"""Power limits set by the replica's own process, which must be root: the power agent's code without
the agent. What was found is on disk; after SIGKILL the next replica on these GPUs puts it back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from policies.core.errors import ActuationError, MeterError
from serve_app.actuators.at_end import undone_at_end
from serve_app.actuators.base import Ask, LimitState, inside, state_of
from serve_app.actuators.limit_record import STATE_FILE, RecordFile
from serve_app.nvml_library import Nvml
from serve_app.power_agent.leases import Holder, Wish
from serve_app.power_agent.node import Node, Rules

log = logging.getLogger("ray.serve")


class NvmlLimits:
    """A `PowerActuator` in this process. `folder`: where what was found is kept, one file per
    group of GPUs; in a container, one that outlives it. `min_interval_s`: between two writes."""

    name = "nvml"

    def __init__(
        self,
        uuids: Sequence[str],
        *,
        holder: str,
        folder: Path = STATE_FILE.parent,
        min_interval_s: float = 1.0,
    ) -> None:
        self._uuids = tuple(uuids)
        self._holder = Holder(name=holder, pid=0, uid=0)
        self._path = folder / f"power-limits.{self._uuids[0] if uuids else 'none'}.json"
        self._rules = Rules(min_interval_s=min_interval_s)
        self._stack = ExitStack()
        self._node: Node | None = None
        self._lease: str | None = None
        self._last = LimitState()

    def ask(self, ask: Ask) -> LimitState:
        """As `PowerActuator`."""
        try:
            self._last = self._asked(ask)
        except (ActuationError, MeterError, OSError) as error:
            self._last = state_of(
                self._last.gpus, ask, held=self._lease is not None, reason=str(error)
            )
        return self._last

    def close(self) -> None:
        """As `PowerActuator`."""
        self._undo()
        self._stack.close()
        self._node = self._lease = None

    def _asked(self, ask: Ask) -> LimitState:
        now_s = time.monotonic()
        node = self._node or self._open()
        node.read_back(now_s)
        if ask.nothing:
            self._give_back(node, now_s)
        elif self._lease is None:
            ask = inside(ask, state_of(self._rows(node, now_s), ask, held=False))
            wish = Wish(watts=ask.watts, clock_mhz=ask.clock_mhz)
            self._lease = node.acquire(now_s, self._uuids, self._holder, wish, math.inf).id
        else:
            ask = inside(ask, self._last)
            node.renew(now_s, self._lease, Wish(watts=ask.watts, clock_mhz=ask.clock_mhz))
        node.tick(now_s)
        return state_of(self._rows(node, now_s), ask, held=self._lease is not None)

    def _open(self) -> Node:
        """The GPUs, and what a killed replica left on them put back."""
        with ExitStack() as stack:
            nvml = Nvml()
            stack.callback(nvml.close)
            file = RecordFile(self._path)
            stack.callback(file.close)
            node = Node(nvml, file, self._uuids, self._rules, _say)
            stack.enter_context(undone_at_end(self._undo))
            self._stack = stack.pop_all()
        self._node = node
        return node

    def _rows(self, node: Node, now_s: float) -> list[dict[str, Any]]:
        return list(node.status(now_s)["gpus"])

    def _give_back(self, node: Node, now_s: float) -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            node.release(now_s, lease)

    def _undo(self) -> None:
        if self._node is not None:
            self._node.restore_all(time.monotonic())


def _say(event: str, **facts: Any) -> None:
    log.info("jouleserve_power_limit %s %s", event, facts)
