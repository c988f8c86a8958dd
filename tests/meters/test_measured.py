"""The decorator of EnergyMeter over functions, coroutines and generators."""

import asyncio
import inspect

import pytest
from constant_draw import ConstantDraw
from meter_contract import FakeClock

from serve_app.meters import EnergyMeter


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def meter(clock):
    return EnergyMeter([ConstantDraw(clock, [("gpu:0", 10.0)])], clock=clock)


def test_a_decorated_function_reports_each_call(meter, clock):
    results = []

    @meter.measured(results.append)
    def work(seconds, *, more=0.0):
        """Its words."""
        clock.advance(seconds + more)
        return seconds

    assert (work(1.0), work(2.0, more=1.0)) == (1.0, 2.0)
    assert [one.joules for one in results] == [10.0, 30.0]
    assert results[0].name.endswith("work")
    assert (work.__name__, work.__doc__) == ("work", "Its words.")


def test_a_call_that_raises_is_reported_too(meter, clock):
    results = []

    @meter.measured(results.append, "named")
    def fail():
        clock.advance(1.0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [(one.name, one.joules) for one in results] == [("named", 10.0)]


def test_a_decorated_recursion_nests(meter, clock):
    results = []

    @meter.measured(results.append)
    def countdown(left):
        clock.advance(1.0)
        if left:
            countdown(left - 1)

    countdown(2)
    assert [one.joules for one in results] == [10.0, 20.0, 30.0]


def test_a_decorated_generator_lasts_to_its_end(meter, clock):
    results = []

    @meter.measured(results.append)
    def numbers():
        clock.advance(1.0)
        sent = yield 1
        clock.advance(1.0)
        yield sent
        return "returned"

    generator = numbers()
    clock.advance(50.0)  # nothing has been asked for yet
    assert next(generator) == 1
    clock.advance(2.0)  # its consumer's time counts
    assert generator.send(7) == 7
    with pytest.raises(StopIteration, match="returned"):
        next(generator)
    assert [one.joules for one in results] == [40.0]
    abandoned = numbers()
    next(abandoned)
    abandoned.close()
    assert results[1].joules == 10.0


async def test_decorated_coroutines_overlap(clock):
    meter = EnergyMeter([ConstantDraw(clock, [("gpu:0", 10.0)])], clock=clock)
    results = []
    started, may_end = asyncio.Event(), asyncio.Event()

    @meter.measured(lambda one: results.append(one.joules))
    async def wait(event, then):
        then.set()
        await event.wait()
        return "done"

    first = asyncio.create_task(wait(may_end, started))
    await started.wait()
    clock.advance(1.0)
    second = asyncio.create_task(wait(may_end, asyncio.Event()))
    await asyncio.sleep(0)
    clock.advance(2.0)
    may_end.set()
    assert await asyncio.gather(first, second) == ["done", "done"]
    assert sorted(results) == [20.0, 30.0]
    assert inspect.iscoroutinefunction(wait)


async def test_a_decorated_stream_is_reported_also_when_its_client_leaves(meter, clock):
    results, closed = [], []

    @meter.measured(results.append)
    async def stream():
        try:
            for token in range(100):
                clock.advance(1.0)
                yield token
        finally:
            closed.append(True)

    tokens = stream()
    assert [await anext(tokens), await anext(tokens)] == [0, 1]
    assert results == []
    await tokens.aclose()
    assert closed == [True]
    assert results[0].joules == 20.0
    assert [token async for token in stream()] == list(range(100))
    assert results[1].joules == 1000.0
