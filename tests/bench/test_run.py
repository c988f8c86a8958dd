"""Whole runs against a real server on loopback: times, tokens, errors, energy, interrupts."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import threading
import time

import pytest
from aiohttp import web
from bench_server import chunk, event, opened, streaming, usage

from policies.core.errors import ConfigError, EnergyServeError
from policies.core.types import SLO
from serve_app.bench import fleet
from serve_app.bench.options import BenchOptions, Endpoint
from serve_app.bench.preflight import Progress
from serve_app.bench.report import table_of
from serve_app.bench.runner import run_bench

ENERGY = {
    "joules": 2.5,
    "idle_joules": 0.5,
    "prefill_joules": 1.0,
    "decode_joules": 1.0,
    "devices": {"cpu": 2.5},
    "source": "estimated",
    "method": "token_weighted",
}


def options(server, requests=4, gap_s=0.02, output_tokens="5", tmp_path=None, **more):
    """Evenly spaced requests, as a trace."""
    trace = tmp_path / "trace.csv"
    rows = [f"{index * gap_s:.6f},6,{output_tokens}" for index in range(requests)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    return BenchOptions(url=server.url, trace=trace, **more)


@pytest.fixture(autouse=True)
def _a_quick_settling(monkeypatch):
    """The test server's books move at every call, not once a second."""
    monkeypatch.setattr(fleet, "_SETTLE_PERIOD_S", 0.05)


@pytest.fixture
def bench(tmp_path):
    def run(server, **settings):
        return run_bench(options(server, tmp_path=tmp_path, **settings))

    return run


def text_of(result):
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table_of(result))
    return console.export_text()


def test_times_and_tokens_are_what_the_server_did(serve, bench):
    server = serve(streaming(ttft_s=0.15, gap_s=0.04))
    result = bench(server, requests=3, gap_s=0.3, output_tokens="6")
    document = result.to_dict()
    assert document["requests"] == {
        "scheduled": 3,
        "arrived": 3,
        "completed": 3,
        "failed": 0,
        "interrupted": 0,
        "errors": {},
    }
    for record in result.records:
        assert record.ttft_s == pytest.approx(0.15, abs=0.06)
        assert record.e2e_s == pytest.approx(0.15 + 5 * 0.04, abs=0.1)
        assert record.tpot_s == pytest.approx((record.e2e_s - record.ttft_s) / 5)
        assert len(record.itl_s) == 5
        assert (record.prompt_tokens, record.output_tokens) == (7, 6)
    assert document["latency"]["ttft_s"]["p50"] == pytest.approx(0.155, abs=0.05)
    assert document["latency"]["itl_s"]["mean"] == pytest.approx(0.042, abs=0.02)
    assert document["tokens"]["output"] == 18
    assert document["tokens"]["output_per_s"] == pytest.approx(18 / document["run"]["wall_s"])
    assert document["run"]["wall_s"] == pytest.approx(0.6 + 0.35, abs=0.2)
    assert document["slo"]["attainment_ratio"] == 1.0


def test_requests_ask_for_exactly_what_was_planned(serve, bench):
    server = serve(streaming())
    bench(server, requests=3, model="served", api_key="secret")
    assert server.paths == ["/v1/chat/completions"] * 3
    assert server.headers[0]["Authorization"] == "Bearer secret"
    prompts = set()
    for body in server.bodies:
        (message,) = body.pop("messages")
        assert len(message["content"].split()) == 6
        prompts.add(message["content"])
        assert body == {
            "model": "served",
            "max_tokens": 5,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    assert len(prompts) == 3


def test_completions_are_measured_alike(serve, bench):
    server = serve(streaming(kind="completions"))
    result = bench(server, endpoint=Endpoint.COMPLETIONS)
    assert server.paths == ["/v1/completions"] * 4
    assert isinstance(server.bodies[0]["prompt"], str)
    assert [record.output_tokens for record in result.completed] == [5] * 4
    assert all(len(record.itl_s) == 4 for record in result.completed)


def test_the_loop_is_open_a_slow_server_does_not_slow_the_sending(serve, bench):
    server = serve(streaming(ttft_s=0.5))
    result = bench(server, requests=10, gap_s=0.02)
    assert max(record.sent_s for record in result.records) < 0.4
    assert result.to_dict()["latency"]["schedule_lag_s"]["p99"] < 0.1
    assert len(result.completed) == 10


@pytest.mark.parametrize("status", [429, 500, 503])
def test_http_errors_are_counted_by_status(serve, bench, status):
    fine = streaming()

    async def answer(request, body, n):
        if n % 2:
            error = {"error": {"message": f"refused {n}", "code": status}}
            return web.json_response(error, status=status)
        return await fine(request, body, n)

    result = bench(serve(answer), requests=6)
    document = result.to_dict()
    assert document["requests"]["errors"] == {f"http_{status}": 3}
    assert (document["requests"]["completed"], document["requests"]["failed"]) == (3, 3)
    assert document["slo"]["attainment_ratio"] == 0.5  # of arrived requests: a refusal is a miss
    refused = [record for record in result.records if not record.completed]
    assert refused[0].error_message.startswith("refused ")
    assert f"failed: http_{status}" in text_of(result)


async def disconnects(request, _body, _n):
    response = await opened(request)
    await response.write(chunk("one"))
    await asyncio.sleep(0.02)
    request.transport.close()
    return response


async def ends_early(request, _body, _n):
    response = await opened(request)
    await response.write(chunk("one"))
    return response


async def breaks_off(request, _body, _n):
    response = await opened(request)
    await response.write(chunk("one"))
    await response.write(event({"error": {"message": "the replica was lost", "code": 500}}))
    await response.write(b"data: [DONE]\n\n")
    return response


async def hangs(request, _body, _n):
    response = await opened(request)
    await response.write(chunk("one"))
    await asyncio.sleep(30)
    return response


async def babbles(request, _body, _n):
    response = await opened(request)
    await response.write(b"data: {not json\n\n")
    return response


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (disconnects, "disconnect", ""),
        (ends_early, "disconnect", "end mark"),
        (breaks_off, "stream_error", "the replica was lost"),
        (hangs, "timeout", "no end after 0.3 s"),
        (babbles, "malformed", "not JSON"),
    ],
)
def test_a_broken_stream_is_a_failure_of_its_kind(serve, bench, answer, kind, message):
    result = bench(serve(answer), requests=2, timeout_s=0.3)
    assert result.errors == {kind: 2}
    assert all(message in record.error_message for record in result.records)
    assert result.to_dict()["latency"]["ttft_s"]["p50"] is None  # failures are no latencies


def test_a_server_that_goes_away_is_a_connect_error(serve, bench, unused_tcp_port):
    server = serve(streaming())
    with pytest.raises(EnergyServeError, match="no server answers at http"):
        run_bench(BenchOptions(url=f"http://127.0.0.1:{unused_tcp_port}"))
    with pytest.raises(ConfigError, match="lists no model; name one with --model"):
        bench(serve(streaming(), models=()))
    assert server.bodies == []


def test_a_model_that_is_not_listed_is_noted_and_tried(serve, bench):
    server = serve(streaming(), models=("one", "two"))
    result = bench(server, model="three", requests=1)
    assert server.bodies[0]["model"] == "three"
    assert "the server lists no three, but one, two" in result.facts.notes


@pytest.mark.parametrize("where", [{"energy": ENERGY}, {"comment": ENERGY}])
def test_energy_is_read_from_the_usage_chunk_and_from_the_comment(serve, bench, where):
    result = bench(serve(streaming(**where)))
    energy = result.to_dict()["energy"]
    assert energy == {
        "source": "estimated",
        "responses": 4,
        "joules": 10.0,
        "joules_per_request": 2.5,
        "joules_per_output_token": 0.5,
        "idle_joules": 2.0,
        "prefill_joules": 4.0,
        "decode_joules": 4.0,
    }
    assert result.records[0].energy.devices == {"cpu": 2.5}
    assert "estimated; told by 4 of 4" in text_of(result)


@pytest.mark.parametrize(
    "energy",
    [
        None,
        {"joules": None, "source": "unavailable", "reason": "no sensor"},
        {"joules": 0, "source": "unavailable"},
        "nonsense",
    ],
)
def test_energy_that_is_not_there_is_unavailable_and_never_zero(serve, bench, energy):
    result = bench(serve(streaming(energy=energy)))
    document = result.to_dict()["energy"]
    assert document["source"] == "unavailable"
    assert document["responses"] == 0
    assert document["joules"] is None
    assert document["joules_per_request"] is None
    assert document["joules_per_output_token"] is None
    (row,) = [line for line in text_of(result).splitlines() if "J per request" in line]
    assert "unavailable" in row


def test_energy_of_some_responses_is_divided_by_those(serve, bench):
    with_energy, without = streaming(energy=ENERGY), streaming()

    async def answer(request, body, n):
        return await (with_energy if n % 2 else without)(request, body, n)

    energy = bench(serve(answer)).to_dict()["energy"]
    assert (energy["responses"], energy["joules"], energy["joules_per_request"]) == (2, 5.0, 2.5)


def test_without_usage_the_chunks_are_counted_and_marked(serve, bench):
    async def answer(request, _body, _n):
        response = await opened(request)
        for _ in range(3):
            await response.write(chunk("word"))
        await response.write(b"data: [DONE]\n\n")
        return response

    records = bench(serve(answer), requests=1).records
    assert (records[0].output_tokens, records[0].prompt_tokens) == (3, None)
    assert records[0].usage_missing


def test_events_in_pieces_and_with_carriage_returns_are_read(serve, bench):
    stream = b": hello\r\n\r\n" + chunk("é").replace(b"\n", b"\r\n") + usage(1, 1)
    stream += b"data: [DONE]\r\n\r\n"

    async def answer(request, _body, _n):
        response = await opened(request)
        for at in range(0, len(stream), 7):
            await response.write(stream[at : at + 7])
            await asyncio.sleep(0)
        return response

    (record,) = bench(serve(answer), requests=1).records
    assert record.completed
    assert record.output_tokens == 1
    assert record.tpot_s is None  # one token has no time between tokens


@pytest.mark.parametrize(
    ("slo", "ratio"),
    [
        (SLO(ttft_s=1.0, tpot_s=1.0), 1.0),
        (SLO(ttft_s=0.01, tpot_s=1.0), 0.0),
        (SLO(ttft_s=1.0, tpot_s=0.01), 0.0),
    ],
)
def test_both_targets_count(serve, bench, slo, ratio):
    server = serve(streaming(ttft_s=0.05, gap_s=0.04))
    slo_section = bench(server, requests=2, slo=slo).to_dict()["slo"]
    assert slo_section["attainment_ratio"] == ratio


def books(n, replicas=1, **changes):
    """Counters that grow with every call until the eighth, as a meter's do."""
    step = min(n, 8)
    content = {
        "meter_joules": 100.0 + 10 * step,
        "attributed_joules": 50.0 + 5 * step,
        "idle_joules": 30.0 + 4 * step,
        "unattributed_joules": 20.0 + 1 * step,
        "num_replicas": replicas,
        "replicas": [
            {"replica": f"r{i}", "num_running": 0, "max_num_active_seqs": 8}
            for i in range(replicas)
        ],
    }
    return {**content, **changes}


@pytest.mark.slow
def test_the_books_are_balanced_and_the_replicas_watched(serve, bench):
    def growing(n):
        content = books(n, replicas=1 + (1 <= n < 3))
        content["replicas"][0]["max_num_active_seqs"] = 8 if n < 2 else 4
        return content

    # 16 responses tell 2.5 J each, 40 J together: what the books call attributed after 8 steps.
    server = serve(streaming(energy=ENERGY, ttft_s=0.1), books=growing)
    result = bench(server, requests=16, gap_s=0.15)
    section = result.to_dict()["fleet"]
    assert section["meter_joules"] == 80.0
    assert section["attributed_joules"] == 40.0
    assert section["idle_joules"] == 32.0
    assert section["unattributed_joules"] == 8.0
    assert section["responses_joules"] == 40.0
    assert section["balance_error_ratio"] == pytest.approx(0.0)
    assert section["settled"] is True
    assert section["replicas"] == {"min": 1, "max": 2, "changes": 2}
    assert section["max_num_active_seqs"] == {"min": 4.0, "max": 8.0, "changes": 1}
    wall_s = result.facts.wall_s
    assert wall_s < section["replica_seconds"] < 2 * wall_s
    assert section["joules_per_request"] == pytest.approx(section["run_meter_joules"] / 16)
    assert 0 < section["run_meter_joules"] < 80.0
    assert "balance error" in text_of(result)


def test_a_balance_that_is_off_is_told(serve, bench):
    server = serve(streaming(energy={**ENERGY, "joules": 5.0}), books=books)
    section = bench(server, requests=16, gap_s=0.0).to_dict()["fleet"]
    assert section["balance_error_ratio"] == pytest.approx(40.0 / 80.0)


def test_a_fleet_without_a_meter_has_no_balance(serve, bench):
    server = serve(streaming(energy=ENERGY), books=lambda n: books(n, meter_joules=None))
    result = bench(server)
    section = result.to_dict()["fleet"]
    assert section["meter_joules"] is None
    assert section["balance_error_ratio"] is None
    assert section["joules_per_request"] is None
    rows = [line for line in text_of(result).splitlines() if "meter" in line or "balance" in line]
    assert all("unavailable" in row for row in rows)


def test_a_counter_that_falls_gives_no_difference(serve, bench):
    server = serve(
        streaming(energy=ENERGY), books=lambda n: books(n, meter_joules=100.0 if n == 0 else 5.0)
    )
    assert bench(server).to_dict()["fleet"]["meter_joules"] is None


def test_a_server_without_books_is_not_asked_twice(serve, bench):
    result = bench(serve(streaming()))
    assert result.to_dict()["fleet"] is None
    assert "not offered" in text_of(result)


def test_the_first_interrupt_drains_and_reports(serve, tmp_path):
    server = serve(streaming(ttft_s=0.3))
    threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
    result = run_bench(options(server, requests=100, gap_s=0.1, tmp_path=tmp_path))
    document = result.to_dict()
    assert document["run"]["interrupted"] is True
    assert 3 <= document["requests"]["arrived"] <= 8
    assert document["requests"]["completed"] == document["requests"]["arrived"]
    assert document["requests"]["scheduled"] == 100
    assert document["requests"]["failed"] == 0


def test_what_does_not_end_within_the_drain_is_interrupted_not_failed(serve, tmp_path):
    server = serve(hangs)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    result = run_bench(options(server, requests=100, gap_s=0.1, tmp_path=tmp_path, drain_s=0.2))
    assert time.monotonic() - begin < 3
    requests = result.to_dict()["requests"]
    assert requests["interrupted"] >= 2
    assert (requests["arrived"], requests["failed"]) == (0, 0)
    assert result.to_dict()["slo"]["attainment_ratio"] is None


def test_a_second_interrupt_does_not_wait(serve, tmp_path):
    server = serve(hangs)
    for delay_s in (0.3, 0.5):
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()
    begin = time.monotonic()
    run_bench(options(server, requests=100, gap_s=0.1, tmp_path=tmp_path, drain_s=30))
    assert time.monotonic() - begin < 3


def test_progress_counts_what_happened(serve, tmp_path):
    progress = Progress()
    run_bench(options(serve(streaming()), requests=3, tmp_path=tmp_path), progress)
    assert (progress.scheduled, progress.sent, progress.completed) == (3, 3, 3)
    assert (progress.running, progress.content_chunks) == (0, 15)


def test_the_document_is_json_without_nan_even_when_nothing_completed(serve, bench):
    async def refuse(_request, _body, _n):
        return web.Response(status=503, text="overloaded")

    document = bench(serve(refuse)).to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["latency"]["ttft_s"] == {"mean": None, "p50": None, "p99": None}
