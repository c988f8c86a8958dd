"""A decoder-only transformer of a real model's shape, with random weights, in plain torch.

The layer of Llama and Qwen3: RMSNorm, rotary positions, grouped-query attention, SwiGLU. What the
weights say does not change which operations run, so time and memory traffic are those of the real
model on these kernels. Llama 3.1's stretched rotary frequencies, other constants in the same
table, are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from serve_app.profiler.torch_attention import attend_decoding, attend_prompt, context_mask

if TYPE_CHECKING:
    from collections.abc import Callable

    from serve_app.profiler.batching import Move
    from serve_app.profiler.shapes import ModelShape
    from serve_app.profiler.torch_step import Layout, Rows


class Resumed(NamedTuple):
    """A prompt whose first `start` tokens are in the cache already, in `slot`."""

    slot: int
    start: int


class Cache:
    """What is kept of the sequences, by slot: keys and values [layer, slot, kv head, token, value]
    and token ids [slot, token]. The last slot, `padding_slot`, takes what padding writes."""

    def __init__(self, shape: ModelShape, slots: int, tokens: int, dtype: Any, device: Any) -> None:
        size = (
            shape.num_hidden_layers,
            slots + 1,
            shape.num_key_value_heads,
            tokens,
            shape.head_dim,
        )
        # Zeros: padding reads what is there, and must not read NaN.
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.token_ids = torch.zeros((slots + 1, tokens), dtype=torch.int64, device=device)
        self.padding_slot = slots

    def move(self, move: Move) -> None:
        """Copy a sequence to another slot."""
        source, target, tokens = move
        for part in (self.keys, self.values):
            part[:, target, :, :tokens] = part[:, source, :, :tokens]
        self.token_ids[target, :tokens] = self.token_ids[source, :tokens]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """Weights of one layer, [out, in]. `qkv`: queries, keys and values stacked; `gate_up` likewise;
    the head norms are None where the model has none."""

    attention_norm: Any
    qkv: Any
    query_norm: Any
    key_norm: Any
    output: Any
    mlp_norm: Any
    gate_up: Any
    down: Any


class Decoder:
    """The model. `max_model_len`: positions that it has rotary tables for."""

    def __init__(
        self, shape: ModelShape, max_model_len: int, dtype: Any, device: Any, seed: int
    ) -> None:
        self.shape = shape
        draw = _weights(dtype, device, seed)
        width, head = shape.hidden_size, shape.head_dim
        self.embedding = draw(shape.vocab_size, width)
        self.head = self.embedding if shape.tie_word_embeddings else draw(shape.vocab_size, width)
        self.norm = torch.ones(width, dtype=dtype, device=device)
        self.layers = [_layer(shape, draw) for _ in range(shape.num_hidden_layers)]
        steps = torch.arange(0, head, 2, dtype=torch.float32, device=device) / head
        positions = torch.arange(max_model_len, dtype=torch.float32, device=device)
        angles = torch.outer(positions, shape.rope_theta**-steps)[:, None]
        self._cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(dtype)
        self._sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(dtype)

    def forward(
        self, layout: Layout, rows: Rows, cache: Cache, logits: Any, resumed: Resumed | None = None
    ) -> None:
        """Compute a step: the cache gets the rows' keys and values, `logits` [samples, vocabulary]
        is written, and each sample's most likely token goes to its place in the cache."""
        decoding, context = layout.decode_rows, layout.context_tokens
        x = self.embedding[cache.token_ids[rows.slots, rows.positions]]
        rotary = self._cos[rows.positions], self._sin[rows.positions]
        mask = context_mask(rows.positions[:decoding], context, x.dtype)
        for layer, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            q, k, v = self._project(layer, x, rotary)
            keys[rows.slots, :, rows.positions] = k
            values[rows.slots, :, rows.positions] = v
            attended = []
            if decoding:
                part = slice(decoding), slice(None), slice(context)
                attended.append(attend_decoding(q[:decoding], keys[part], values[part], mask))
            if layout.prompt_rows:
                k, v = _prompt_context(layout, resumed, (k, v), (keys, values))
                attended.append(attend_prompt(q[decoding:], k, v))
            rows_out = torch.cat(attended) if len(attended) > 1 else attended[0]
            x = torch.addmm(x, rows_out, layer.output.t())
            gate, up = functional.linear(self._norm(x, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            x = torch.addmm(x, functional.silu(gate) * up, layer.down.t())
        torch.mm(self._norm(x[rows.sampled], self.norm), self.head.t(), out=logits)
        cache.token_ids[rows.target_slots, rows.target_positions] = logits.argmax(dim=-1)

    def _project(self, layer: Layer, x: Any, rotary: tuple[Any, Any]) -> tuple[Any, Any, Any]:
        """Queries, keys, values: [row, head, value] each, the first two turned by position."""
        heads, kv_heads = self.shape.num_attention_heads, self.shape.num_key_value_heads
        qkv = functional.linear(self._norm(x, layer.attention_norm), layer.qkv)
        qkv = qkv.view(len(x), heads + 2 * kv_heads, self.shape.head_dim)
        qk, v = qkv.split((heads + kv_heads, kv_heads), dim=1)
        if self.shape.normed_heads:
            q, k = qk.split((heads, kv_heads), dim=1)
            qk = torch.cat((self._norm(q, layer.query_norm), self._norm(k, layer.key_norm)), dim=1)
        cos, sin = rotary
        first, second = qk.chunk(2, dim=-1)
        qk = torch.addcmul(qk * cos, torch.cat((second, first), dim=-1), sin)
        q, k = qk.split((heads, kv_heads), dim=1)
        return q, k, v

    def _norm(self, x: Any, weight: Any) -> Any:
        return functional.rms_norm(x, weight.shape, weight, self.shape.rms_norm_eps)


def _prompt_context(
    layout: Layout, resumed: Resumed | None, fresh: tuple[Any, Any], cached: tuple[Any, Any]
) -> tuple[Any, Any]:
    """Keys and values that a prompt attends to, [kv head, token, value]: its own rows alone where
    it begins, else all of it from the cache."""
    if resumed is None:
        k, v = (part[layout.decode_rows :].transpose(0, 1) for part in fresh)
    else:
        end = resumed.start + layout.prompt_rows
        k, v = (part[resumed.slot, :, :end] for part in cached)
    return k, v


def _weights(dtype: Any, device: Any, seed: int) -> Callable[..., Any]:
    """Draws matrices [out, in] that keep the size of what they multiply, times `scale`."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(out: int, width: int, scale: float = 1.0) -> Any:
        weight = torch.empty((out, width), dtype=dtype, device=device)
        return weight.normal_(std=scale * width**-0.5, generator=generator)

    return draw


def _layer(shape: ModelShape, draw: Callable[..., Any]) -> Layer:
    width, inner = shape.hidden_size, shape.intermediate_size
    heads, kv_heads, head = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
    # So that the residual stream does not grow with depth (GPT-2's initialisation).
    into_residual = (2 * shape.num_hidden_layers) ** -0.5
    qkv = draw((heads + 2 * kv_heads) * head, width)
    return Layer(
        attention_norm=qkv.new_ones(width),
        qkv=qkv,
        query_norm=qkv.new_ones(head) if shape.normed_heads else None,
        key_norm=qkv.new_ones(head) if shape.normed_heads else None,
        output=draw(width, heads * head, into_residual),
        mlp_norm=qkv.new_ones(width),
        gate_up=draw(2 * inner, width),
        down=draw(width, inner, into_residual),
    )
