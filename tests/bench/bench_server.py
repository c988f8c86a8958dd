"""An OpenAI-compatible server on loopback whose every answer the test writes."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager

from aiohttp import web


class Server:
    """Runs in a thread of its own, as a server does. `answer(request, body, n)` handles request n;
    `books(n)` is the n-th answer of /jouleserve/energy, None = 404."""

    def __init__(self, answer, books=None, models=("served",)):
        self.answer, self.books, self.models = answer, books, models
        self.bodies, self.energy_calls = [], 0
        self.paths, self.headers = [], []

    async def handle(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.paths.append(request.path)
        self.headers.append(request.headers)
        return await self.answer(request, body, len(self.bodies) - 1)

    async def energy(self, _request):
        if self.books is None:
            raise web.HTTPNotFound
        self.energy_calls += 1
        return web.json_response(self.books(self.energy_calls - 1))

    async def list_models(self, _request):
        return web.json_response({"data": [{"id": name} for name in self.models]})

    def app(self):
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.handle)
        app.router.add_post("/v1/completions", self.handle)
        app.router.add_get("/v1/models", self.list_models)
        app.router.add_get("/jouleserve/energy", self.energy)
        return app


@contextmanager
def running(server):
    loop = asyncio.new_event_loop()
    started = threading.Event()
    runner = web.AppRunner(server.app(), shutdown_timeout=0.1)

    async def start():
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.port = site._server.sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{server.port}"
        started.set()

    async def stop():
        await runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run():
        loop.run_until_complete(start())
        loop.run_forever()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def event(content):
    return f"data: {json.dumps(content)}\n\n".encode()


def chunk(text, kind="chat", finish=None):
    part = {"delta": {"content": text}} if kind == "chat" else {"text": text}
    return event({"id": "x", "choices": [{"index": 0, "finish_reason": finish, **part}]})


def usage(prompt, output, **more):
    counts = {"prompt_tokens": prompt, "completion_tokens": output}
    return event({"id": "x", "choices": [], "usage": counts, **more})


async def opened(request):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


def streaming(*, ttft_s=0.0, gap_s=0.0, tokens=None, energy=None, comment=None, kind="chat"):
    """An answer with known times: a role chunk at once, tokens from `ttft_s` on, every `gap_s`."""

    async def answer(request, body, _n):
        count = tokens if tokens is not None else body["max_tokens"]
        response = await opened(request)
        if kind == "chat":
            await response.write(
                event({"id": "x", "choices": [{"delta": {"role": "assistant", "content": ""}}]})
            )
        await asyncio.sleep(ttft_s)
        for token in range(count):
            if token:
                await asyncio.sleep(gap_s)
            finish = "length" if token == count - 1 else None
            await response.write(chunk(f" t{token}", kind, finish))
        await response.write(usage(7, count, **({"energy": energy} if energy else {})))
        if comment is not None:
            await response.write(f": energy {json.dumps(comment)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer
