"""A tiny model on disk, and vLLM's own configuration of it."""

from __future__ import annotations

import json

import pytest

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a two-layer Llama: its configuration, no weights."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    return folder


@pytest.fixture(scope="session")
def engine_config(tiny_model):
    """`engine_config(async_scheduling)`: the VllmConfig that the CPU engine would run with."""

    def make(async_scheduling):
        from vllm import EngineArgs

        config = EngineArgs(
            model=str(tiny_model),
            skip_tokenizer_init=True,
            dtype="bfloat16",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=32,
            max_num_batched_tokens=2048,
            enable_prefix_caching=False,
            scheduler_cls="serve_app.engine.scheduler.capped_scheduler",
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = 512
        config.scheduler_config.async_scheduling = async_scheduling  # CPU forces it off
        return config

    return make
