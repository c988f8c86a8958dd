"""The clients that people have, unmodified: openai for Python and for node."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess

import openai
import pytest
from running_service import MODEL
from serve_checks import GREEDY, PARIS, check_energy

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]


def test_the_python_client(client):
    answer = client.chat.completions.create(model=MODEL, messages=PARIS, **GREEDY)
    assert "Paris" in answer.choices[0].message.content
    assert answer.energy["joules"] > 0
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    text = client.completions.create(model=MODEL, prompt="The capital of France is", **GREEDY)
    assert "Paris" in text.choices[0].text


def test_the_python_client_streams(client):
    usage = {"include_usage": True}
    stream = client.chat.completions.create(
        model=MODEL, messages=PARIS, stream=True, stream_options=usage, **GREEDY
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert chunks[-1].usage.completion_tokens > 0
    assert chunks[-1].energy["joules"] > 0
    # Without usage: the comment line must not disturb the client.
    plain = client.chat.completions.create(model=MODEL, messages=PARIS, stream=True, **GREEDY)
    assert "".join(c.choices[0].delta.content or "" for c in plain) == text


async def test_the_async_python_client(service):
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none") as client:

        async def ask(stream):
            answer = await client.chat.completions.create(
                model=MODEL, messages=PARIS, stream=stream, **GREEDY
            )
            if not stream:
                return answer.choices[0].message.content
            return "".join([c.choices[0].delta.content or "" async for c in answer])

        answers = await asyncio.gather(*(ask(stream) for stream in (False, True, False, True)))
    assert all("Paris" in text for text in answers)


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const ask = { model: process.argv[3], temperature: 0, max_tokens: 24, stream: true,
  messages: [{ role: "user", content: "What is the capital of France?" }] };
for (const stream_options of [undefined, { include_usage: true }]) {
  let text = "", energy = null;
  for await (const chunk of await client.chat.completions.create({ ...ask, stream_options })) {
    text += chunk.choices[0]?.delta?.content ?? "";
    energy = chunk.energy ?? energy;
  }
  console.log(JSON.stringify({ text, energy }));
}
try {
  await client.chat.completions.create({ ...ask, stream: false, max_tokens: -1 });
} catch (error) {
  console.log(JSON.stringify({ status: error.status, message: error.message }));
}
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory):
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    (folder / "ask.mjs").write_text(NODE)
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, "openai"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot install its openai package here: {done.stderr[-300:]}")
    return folder


def test_the_npm_client_streams(service, node_folder):
    done = subprocess.run(
        ["node", "ask.mjs", f"{service.url}/v1", MODEL],
        cwd=node_folder,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    plain, with_usage, refused = map(json.loads, done.stdout.splitlines())
    assert "Paris" in plain["text"]
    assert plain["energy"] is None
    assert "Paris" in with_usage["text"]
    check_energy(with_usage["energy"])
    assert refused["status"] == 400
    assert "max_tokens" in refused["message"]
