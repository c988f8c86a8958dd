"""The closed loop and the rounds, against a real HTTP server with known times."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from aiohttp import web
from bench_server import streaming

from serve_app.bench.prompts import prompt_source
from serve_app.compare import measure
from serve_app.compare.load import Cell, run_cell
from serve_app.compare.measure import Plan, idle_cpu_s, measure_rounds, rotated, warm_up
from serve_app.compare.options import CompareOptions
from serve_app.compare.systems import Rig, System


@pytest.fixture
def prompts():
    return prompt_source("served", None, 0)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(measure, "_PAUSE_S", 0.0)


def cell(**more):
    base = {"model": "served", "concurrency": 4, "requests": 12, "prompt_tokens": 5}
    return Cell(**{**base, "output_tokens": 3, "first_index": 0, **more})


def test_a_cell_keeps_its_concurrency_and_counts_every_token(serve, prompts):
    under_way, most = 0, 0
    answer = streaming(ttft_s=0.05)

    async def counted(request, body, n):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await answer(request, body, n)
        finally:
            under_way -= 1

    server = serve(counted)
    result = run_cell(server.url, cell(), prompts)
    assert most == 4
    assert len(result.records) == len(server.bodies) == 12
    assert sum(r.output_tokens for r in result.records) == 36
    assert 0.15 <= result.wall_s < 1.0
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 12
    assert {body["max_tokens"] for body in server.bodies} == {3}
    assert all(body["ignore_eos"] and body["stream"] for body in server.bodies)


def test_failures_are_rows_not_exceptions(serve, prompts):
    async def refuse(_request, _body, n):
        if n % 2:
            return await streaming()(_request, _body, n)
        raise web.HTTPServiceUnavailable

    server = serve(refuse)
    (row,) = rows_of(
        [System(name="a", url=server.url, app="a")], prompts, concurrency=(2,), rounds=1
    )
    assert row.completed == 2
    assert row.errors == {"http_503": 2}
    assert row.output_tokens == 2 * 16


def rows_of(systems, prompts, done=None, **more):
    options = CompareOptions(**{"output_tokens": 16, "prompt_tokens": 4, **more})
    waves = dict.fromkeys(options.concurrency, 2)
    plan = Plan(
        part="overhead",
        model="served",
        options=options,
        waves=waves,
        prompts=prompts,
        done=done or {},
    )
    return list(measure_rounds(Rig(systems=tuple(systems), children=(), configs={}), plan, str))


def test_rounds_interleave_all_systems_in_rotating_order_with_the_same_prompts(serve, prompts):
    servers = {name: serve(streaming()) for name in ("a", "b", "c")}
    prepared = []
    systems = [
        System(name=n, url=s.url, app=n, prepare=lambda n=n: prepared.append(n))
        for n, s in servers.items()
    ]
    rows = rows_of(systems, prompts, concurrency=(1, 2), rounds=3)
    turns = [rows[at : at + 3] for at in range(0, len(rows), 3)]
    assert [[r.system for r in turn] for turn in turns[:3]] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
    ]
    assert [(t[0].round, t[0].concurrency) for t in turns] == [
        (n, c) for n in (1, 2, 3) for c in (1, 2)
    ]
    assert prepared == [r.system for r in rows]
    texts = {
        name: sorted(body["messages"][0]["content"] for body in server.bodies)
        for name, server in servers.items()
    }
    assert texts["a"] == texts["b"] == texts["c"]
    assert len(set(texts["a"])) == len(texts["a"]) == 3 * (2 + 4)


def test_a_later_session_goes_on_counting_rounds(serve, prompts):
    server = serve(streaming())
    systems = [System(name="a", url=server.url, app="a")]
    rows = rows_of(systems, prompts, concurrency=(1, 2), rounds=2, done={2: 3})
    assert [(r.concurrency, r.round) for r in rows] == [(1, 1), (2, 4), (1, 2), (2, 5)]


def test_times_and_rates_are_what_the_client_saw(serve, prompts):
    server = serve(streaming(ttft_s=0.1, gap_s=0.02))
    (row,) = rows_of(
        [System(name="a", url=server.url, app="a")], prompts, concurrency=(2,), rounds=1
    )
    assert row.ttft_p50_s == pytest.approx(0.1, abs=0.05)
    assert row.tpot_p50_s == pytest.approx(0.02, abs=0.008)
    assert row.output_tokens == 2 * 2 * 16
    assert row.tokens_per_s == pytest.approx(row.output_tokens / row.wall_s)
    assert row.wall_s == pytest.approx(2 * (0.1 + 15 * 0.02), rel=0.3)


def test_the_warm_up_sizes_cells_by_the_slowest_system(serve, prompts):
    fast, slow = serve(streaming()), serve(streaming(ttft_s=0.2))
    systems = tuple(System(name=str(n), url=s.url, app="x") for n, s in enumerate((fast, slow)))
    options = CompareOptions(concurrency=(1, 2), output_tokens=2, cell_s=1.0)
    plan = Plan(part="overhead", model="served", options=options, waves={}, prompts=prompts)
    rig = Rig(systems=systems, children=(), configs={})
    found = warm_up(rig, plan, str)
    assert set(found) == {1, 2}
    assert all(3 <= waves <= 5 for waves in found.values())
    assert warm_up(rig, replace(plan, options=replace(options, cell_s=0.01)), str) == {1: 2, 2: 2}
    assert len(fast.bodies) == len(slow.bodies) == 2 * (1 + 2)


def test_idle_cpu_is_that_of_the_other_applications():
    spent = {"a/server": 1.0, "a/engine": 2.0, "b/server": 0.25, "c/engine": 0.5, "ray/proxy": 4.0}
    assert idle_cpu_s(spent, "a") == 0.75


def test_rotation_keeps_all():
    assert rotated([1, 2, 3], 4) == [2, 3, 1]


def test_prompts_of_warm_up_and_rounds_never_meet(prompts):
    options = CompareOptions(concurrency=(1, 8, 32))
    waves = dict.fromkeys(options.concurrency, 40)
    plan = Plan(part="overhead", model="m", options=options, waves=waves, prompts=prompts)
    used = set()
    for number in range(4):
        for c in options.concurrency:
            one = plan.cell(c, number)
            mine = set(range(one.first_index, one.first_index + one.requests))
            assert not mine & used
            used |= mine


def test_ctrl_c_ends_a_cell_at_once(serve, prompts):
    """As a user sends it: while requests are under way and others wait."""

    async def never(_request, _body, _n):
        await asyncio.sleep(30)

    server = serve(never)

    def interrupt():
        while len(server.bodies) < 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    started_s = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run_cell(server.url, cell(), prompts)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started_s < 5
    assert len(server.bodies) == 4
