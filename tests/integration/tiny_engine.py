"""A real vLLM engine on the CPU that starts quickly: our scheduler, a tiny random model."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from types import SimpleNamespace

from serve_app.engine.access import external_id, set_max_num_active_seqs
from serve_app.engine.step_link import StepReceiver

MAX_NUM_SEQS = 32
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    ),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


class Engine:
    """An AsyncLLM with our scheduler, and every step event it sends. `start` it before use."""

    def __init__(self):
        self.events = []
        self.receiver = StepReceiver(self.events.append)
        self.watched = True
        self.asked = 0

    def start(self, folder):
        """In an environment that holds ENVIRONMENT and the receiver's path."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self.llm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(folder),
                skip_tokenizer_init=True,
                dtype="bfloat16",
                enforce_eager=True,
                max_model_len=1024,
                max_num_seqs=MAX_NUM_SEQS,
                distributed_executor_backend="uni",
                scheduler_cls="small_backlog.capped_scheduler",
            )
        )

    async def set(self, cap):
        return await set_max_num_active_seqs(SimpleNamespace(_engine_client=self.llm), cap)

    async def generate(self, output_tokens, prompt_tokens=40, prompt=None, request_id=None):
        """(request id, output tokens, cached prompt tokens, finish reason) of one request."""
        from vllm import SamplingParams

        self.asked += 1
        request_id = request_id or f"test-{self.asked}"
        prompt = prompt or [
            random.Random(self.asked).randrange(2, 500) for _ in range(prompt_tokens)
        ]
        sampling = SamplingParams(max_tokens=output_tokens, ignore_eos=True, detokenize=False)
        last, tokens = None, 0
        async for last in self.llm.generate({"prompt_token_ids": prompt}, sampling, request_id):
            tokens = len(last.outputs[0].token_ids)
        return request_id, tokens, last.num_cached_tokens or 0, last.outputs[0].finish_reason

    def ask(self, count, **options):
        return [asyncio.create_task(self.generate(**options)) for _ in range(count)]

    async def drain_forever(self):
        while True:
            if self.watched:
                self.receiver.drain()
            await asyncio.sleep(0.005)

    async def quiet(self):
        """All events so far; the last step's message needs a moment."""
        await asyncio.sleep(0.2)
        self.receiver.drain()
        return list(self.events)

    def steps(self):
        """The external ids in each step begun so far."""
        self.receiver.drain()
        return [{external_id(s.request_id) for s in e.shares} for e in self.events if e.kind == "b"]

    async def until_running(self, count, apart_from=frozenset()):
        """Until a step holds `count` requests, and none of those named."""
        async with asyncio.timeout(60):
            while not any(
                len(step) >= count and not step & apart_from for step in self.steps()[-1:]
            ):
                await asyncio.sleep(0.005)


def save_model(folder):
    """A Llama of two layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
