"""Grouped-query attention over a cache of slots, in plain torch.

One decoding row has as many queries per KV head as heads share it, so it needs no copies of keys
and values: its queries are the rows of a small matrix. Two batched products read every key and
value once, and cut a long context into blocks that run side by side. (torch's fused attention with
a mask gives each KV head of each sequence one block: with few sequences most of a GPU would idle,
which a serving engine's kernels avoid.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def context_mask(positions: Any, context_tokens: int, dtype: Any) -> Any:
    """0 where a row at its position may look, else -inf: [row, 1, context]."""
    columns = torch.arange(context_tokens, device=positions.device)
    hidden = columns > positions[:, None]
    zeros = torch.zeros(hidden.shape, dtype=dtype, device=positions.device)
    return zeros.masked_fill(hidden, float("-inf"))[:, None]


def attend_decoding(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """One query row per sequence. q [row, head, value], k and v [row, kv head, context, value], the
    mask of `context_mask`; returns [row, head * value]."""
    rows, heads, size = q.shape
    kv_heads, context = k.shape[1:3]
    grouped = q.reshape(rows * kv_heads, heads // kv_heads, size)
    scores = torch.bmm(grouped, k.flatten(0, 1).transpose(1, 2)).view(rows, heads, context)
    shares = torch.add(mask, scores, alpha=size**-0.5).softmax(dim=-1)
    return torch.bmm(shares.view((*grouped.shape[:2], context)), v.flatten(0, 1)).view(rows, -1)


def attend_prompt(q: Any, k: Any, v: Any) -> Any:
    """The last rows of one sequence, each looking at itself and what is before it. q [row, head,
    value], k and v [kv head, context, value]; returns [row, head * value]."""
    rows, heads, size = q.shape
    kv_heads, context = k.shape[:2]
    if rows == context:
        attended = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], is_causal=True, enable_gqa=True
        )
        return attended[0].transpose(0, 1).reshape(rows, -1)
    # Kernels that take a mask do not take shared heads: heads of a group become rows.
    group = heads // kv_heads
    first = context - rows
    mask = context_mask(torch.arange(first, context, device=q.device), context, q.dtype)[:, 0]
    attended = functional.scaled_dot_product_attention(
        q.view(rows, kv_heads, group, size).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, size),
        k[None],
        v[None],
        attn_mask=mask.repeat(group, 1),
    )
    return attended.reshape(kv_heads, group, rows, size).permute(2, 0, 1, 3).reshape(rows, -1)
