"""CPU packages and DRAM through pyRAPL's device API, for those who ask for it by name.

Only the raw counters are pyRAPL's. They go through the same tracker as those of `rapl`, with the
range from powercap, so that what pyRAPL makes of them (a wrap as None or negative energy, µJ called
J) does not reach our numbers; docs/adr/0008-pyrapl.md has the list. The result is that of `rapl`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from policies.core.errors import MeterPermission, MeterUnavailable
from serve_app.meters.base import DeviceKind
from serve_app.meters.powercap import HOW_TO_GRANT, POWERCAP_ROOT, find_zones
from serve_app.meters.rapl import RaplBackend, RaplSettings

_HOW_TO_INSTALL = (
    "pyRAPL is not installed: `pip install 'jouleserve[pyrapl]'`, or use the back-end `rapl`, "
    "which reads the same counters without it"
)


class PyRaplBackend(RaplBackend):
    """`rapl` on counters that pyRAPL reads.

    Raises MeterUnavailable where pyRAPL is missing or cannot start (two dies on one socket, a
    package that it does not see), MeterPermission where it may not read the counters. It has its
    paths built in: `settings.root` must be the system's.
    """

    name = "pyrapl"

    def __init__(
        self,
        settings: RaplSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = settings or RaplSettings()
        if settings.root != POWERCAP_ROOT:
            raise MeterUnavailable(f"pyRAPL reads {POWERCAP_ROOT} only, not {settings.root}")
        module = _import_pyrapl()
        zones = find_zones(POWERCAP_ROOT)
        self._apis = _open_apis(module, {zone.device.kind for zone in zones})
        readers = [partial(_read_uj, self._apis[z.device.kind], z.device.name) for z in zones]
        super().__init__(
            settings,
            zones=[replace(zone, reader=read) for zone, read in zip(zones, readers, strict=True)],
            clock=clock,
        )

    def close(self) -> None:
        """Stop reading and close pyRAPL's files. May be called twice."""
        super().close()
        for api in self._apis.values():
            for file in api._sys_files:
                file.close()


def _open_apis(module: ModuleType, kinds: Iterable[DeviceKind]) -> dict[DeviceKind, Any]:
    """Return pyRAPL's device API for each kind of zone."""
    devices = {DeviceKind.CPU: module.Device.PKG, DeviceKind.DRAM: module.Device.DRAM}
    try:
        create = module.DeviceAPIFactory.create_device_api
        return {kind: create(devices[kind], None) for kind in kinds}
    except PermissionError as error:
        grant = HOW_TO_GRANT.format(root=POWERCAP_ROOT)
        raise MeterPermission(f"{error.filename}: {grant}") from error
    except (module.PyRAPLException, OSError, ValueError) as error:
        raise MeterUnavailable(
            f"pyRAPL cannot start here ({error!r}): it knows neither several dies on a socket nor "
            "psys; use the back-end `rapl`"
        ) from error


def _read_uj(api: Any, name: str) -> int:
    """Return the counter of a package or its DRAM, microjoules. Raises OSError or ValueError."""
    socket = int(name.removeprefix("package-"))
    values = api.energy()  # by socket number; -1 where there is none
    if socket >= len(values) or values[socket] < 0:
        raise ValueError(f"pyRAPL shows no {name}")
    return int(values[socket])


def _import_pyrapl() -> ModuleType:
    """Return the module. Its import warns on the root logger when pymongo is missing."""
    with _quiet():
        try:
            return importlib.import_module("pyRAPL")
        except ImportError as error:
            raise MeterUnavailable(_HOW_TO_INSTALL) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep an import from logging, and from configuring the root logger by it."""
    handlers, level = logging.root.handlers[:], logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        logging.root.handlers[:] = handlers
