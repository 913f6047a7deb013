"""Attention over a large picture that is trained, some queries at a time, by oneDNN's products.

Nothing of the size of the scores is kept for the way back: they are computed again from queries, keys and the logarithm
of each query's sum (Dao et al., FlashAttention, arXiv 2205.14135, appendix B.2; whose CPU kernel in PyTorch multiplies
by MKL). Powers are of 2. With P the weights, O the output and dO its gradient,

    dV = P^T dO,   dS = P (dO V^T - D),   D = sum of dO O over a query's numbers,   dQ = dS K,   dK = dS^T Q,

where scores are scaled by 1 / sqrt(d). What is subtracted from scores and from dO V^T takes part in the products as one
more column beside queries and dO, and a column of ones beside keys and values: it is summed before anything is rounded.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minisd.fast.attention import CHUNK, LARGE, MODEST, ROWS, longest
from minisd.fast.onednn import computes, packed, product, trained_in
from minisd.layers import Attention


class LearningAttention(Attention):
    """The same projections; scores and their powers in float32."""

    def forward(self, x: Tensor, context: Tensor, causal: bool = False) -> Tensor:  # [b, n, dim], [b, m, context_dim]
        if causal or x.shape[1] * context.shape[1] < LARGE or not computes(trained_in(x)):
            return super().forward(x, context, causal)
        return self.out(cast(Tensor, Attended.apply(self.q(x), self.k(context), self.v(context), self.heads)))


class Attended(torch.autograd.Function):
    """The values that the queries find, with gradients: [b, n, dim], [b, m, dim], [b, m, dim] -> [b, n, dim]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        y, logs = torch.empty_like(q), q.new_empty(len(q), heads, q.shape[1], dtype=torch.float32)
        ctx.heads = heads
        ctx.save_for_backward(q, k, v, y, logs)
        for *head, y1, logs1 in zip(*(each(x, heads) for x in (q, k, v, y)), logs.flatten(0, 1), strict=True):
            answer(Head(*head), y1, logs1)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # [b, n, dim]
        q, k, v, y, logs = ctx.saved_tensors
        found = [torch.empty_like(x) for x in (q, k, v)]
        parts = (each(x, ctx.heads) for x in (q, k, v, y, grad, *found))
        for (*head, y1, grad1, dq, dk, dv), logs1 in zip(zip(*parts, strict=True), logs.flatten(0, 1), strict=True):
            go_back(Head(*head), y1, grad1, logs1, Head(dq, dk, dv))
        return *found, None


class Head(NamedTuple):
    """Queries [n, d], keys and values [m, d] of one head, or their gradients."""

    q: Tensor
    k: Tensor
    v: Tensor


def each(x: Tensor, heads: int) -> Iterator[Tensor]:
    """Views of the heads, sample by sample: [b, n, heads * d] -> b * heads times [n, d]."""
    return (x[b, :, h] for x in [x.unflatten(2, (heads, -1))] for b in range(len(x)) for h in range(heads))


def at_once(queries: int, keys: int) -> int:
    """Queries of a piece."""
    return min(max(CHUNK // keys, ROWS), queries)


def answer(head: Head, y: Tensor, logs: Tensor) -> None:
    """One head's output [n, d], and the logarithm of each query's sum [n], written into these."""
    q, k, v = head
    rows = at_once(len(q), len(k))
    queries, keys = q.float() * (q.shape[1] ** -0.5 / math.log(2)), k.float()
    modest = bool(longest(queries) * longest(keys) < MODEST)
    keys, values = packed(keys, rows), packed(v.t(), rows)
    for part, out, log in zip(queries.split(rows), y.split(rows), logs.split(rows), strict=True):
        scores = product(part, keys)              # [rows, m]
        top = scores.new_zeros(()) if modest else scores.amax(dim=1, keepdim=True)
        if not modest:
            scores -= top
        sums = scores.exp2_().sum(dim=1, keepdim=True)
        torch.div(product(scores.to(v.dtype), values), sums, out=out)
        log.copy_((sums.log2_() + top)[:, 0])


def go_back(head: Head, y: Tensor, grad: Tensor, logs: Tensor, found: Head) -> None:
    """One head's gradients, written into `found`, from its output's [n, d].

    The logarithm of the scores' scale is added to them, so that it is in dS already; dV alone must do without it.
    """
    q, k, v = head
    rows, scale = at_once(len(q), len(k)), q.shape[1] ** -0.5
    queries = torch.cat([q.float() * (scale / math.log(2)), math.log2(scale) - logs[:, None]], dim=1)
    less = -(grad.float() * y.float()).sum(dim=1, keepdim=True)
    coarse = less.to(q.dtype)                     # and what of it bfloat16 has left over
    grads = torch.cat([grad, coarse, (less - coarse).to(q.dtype)], dim=1)
    keys = packed(torch.cat([k.float(), logs.new_ones(len(k), 1)], dim=1), rows)
    values = packed(torch.cat([v, v.new_ones(len(v), 2)], dim=1), rows)
    back = packed(k.t(), rows)
    dk, dv = (torch.zeros(x.shape[::-1]) for x in (k, v))
    for n in range(0, len(q), rows):
        piece = slice(n, n + rows)
        weights = product(queries[piece], keys).exp2_().to(q.dtype)     # [rows, m]
        dscores = product(grads[piece], values).mul_(weights)
        found.q[piece] = product(dscores, back)
        dk += product(q[piece].t(), dscores.t())
        dv += product(grad[piece].t(), weights.t())
    found.k.copy_(dk.t())
    found.v.copy_(dv.t() / scale)
