"""Ways to measure a piece of code: a `with` block and a decorator. Both make one window per use."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from policies.core.errors import MeterError
from serve_app.meters.base import Reading
from serve_app.meters.window import Measurement

if TYPE_CHECKING:
    from serve_app.meters.meter import EnergyMeter

_F = TypeVar("_F", bound=Callable[..., Any])
_Any = Callable[..., Any]
_Block = Callable[[], AbstractContextManager[None]]
Report = Callable[[Measurement], object]


class Window:
    """One `with meter.window(...)` block.

    `measurement` is set when the block has ended, also by an exception. Windows are independent
    objects: they nest, overlap and cross tasks and threads.
    """

    def __init__(self, meter: EnergyMeter, name: str | None) -> None:
        self.name = name
        self.measurement: Measurement | None = None
        self._meter = meter
        self._begin: Reading | None = None

    def __enter__(self) -> Self:
        self._begin = self._meter.read()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.measurement = self.so_far()

    def so_far(self) -> Measurement:
        """Return the window from its beginning to now; MeterError outside of the block's run."""
        if self._begin is None:
            raise MeterError("the window has not begun")
        return self._meter.measure_since(self._begin, self.name)


def measured(meter: EnergyMeter, report: Report, name: str | None) -> Callable[[_F], _F]:
    """Return the decorator behind `EnergyMeter.measured`, which says what it does."""

    def decorate(function: _F) -> _F:
        @contextmanager
        def block() -> Iterator[None]:
            window = Window(meter, name or function.__qualname__)
            try:
                with window:
                    yield
            finally:
                if window.measurement is not None:
                    report(window.measurement)

        wrapper = next(wrap for applies, wrap in _WRAPPERS if applies(function))(function, block)
        return cast("_F", functools.wraps(function)(wrapper))

    return decorate


def _function(function: _Any, block: _Block) -> _Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with block():
            return function(*args, **kwargs)

    return wrapper


def _coroutine(function: _Any, block: _Block) -> _Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        with block():
            return await function(*args, **kwargs)

    return wrapper


def _generator(function: _Any, block: _Block) -> _Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with block():
            return (yield from function(*args, **kwargs))

    return wrapper


def _async_generator(function: _Any, block: _Block) -> _Any:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with block():
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item

    return wrapper


_WRAPPERS: tuple[tuple[Callable[[_Any], bool], Callable[[_Any, _Block], _Any]], ...] = (
    (inspect.isasyncgenfunction, _async_generator),
    (inspect.iscoroutinefunction, _coroutine),
    (inspect.isgeneratorfunction, _generator),
    (callable, _function),
)
