"""Attention over a large picture, some queries at a time, by oneDNN's products.

PyTorch's own kernel keeps the scores out of memory as well, but multiplies by MKL, which on AMD's processors is slow.
On processors with AMX it multiplies by that, and is the faster.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minisd.devices import cpu_flags
from minisd.fast.onednn import inferring, packed, product
from minisd.layers import Attention

LARGE = 1 << 19                                   # scores: fewer are left to PyTorch
CHUNK = 1 << 20                                   # scores that fit a cache
MODEST = 64.0                                     # scores whose powers of 2 neither overflow nor vanish, nor their sums
ROWS = 64                                         # queries at least, however many keys: each pass reads all of those
AMX = "amx_bf16"


def worthwhile() -> bool:
    """Whether this processor gains by it."""
    return AMX not in cpu_flags()


class ChunkedAttention(Attention):
    """The same projections; scores and their powers in float32."""

    def forward(self, x: Tensor, context: Tensor, causal: bool = False) -> Tensor:  # [b, n, dim], [b, m, context_dim]
        if causal or not inferring():
            return super().forward(x, context, causal)
        answer = one_operator if torch.compiler.is_compiling() else answered
        return self.out(answer(self.q(x), self.k(context), self.v(context), self.heads))


def answered(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The values that the queries find, in pieces where they are many: [b, n, dim], [b, m, dim], [b, m, dim]."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))      # [b, heads, n or m, dim/heads]
    if q.shape[2] * k.shape[2] < LARGE:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    y = q.new_empty(len(q), q.shape[2], heads, q.shape[3])
    for b in range(len(q)):
        for h in range(heads):
            attend(q[b, h], k[b, h], v[b, h], y[b, :, h])
    return y.flatten(2)


# For the compiler, which would else unroll the pieces and fix their number.
one_operator = torch.library.custom_op("minisd::answered", answered, mutates_args=())
one_operator.register_fake(lambda q, k, v, heads: torch.empty_like(q))


def attend(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> None:
    """One head's answer written into y: [n, d], [m, d], [m, d], [n, d]."""
    rows = min(max(CHUNK // len(k), ROWS), len(q))
    scale = q.shape[1] ** -0.5 / math.log(2)      # 2 ** x is quicker than e ** x
    modest = bool(scale * longest(q) * longest(k) < MODEST)
    keys, values = packed(k.float(), rows), packed(torch.cat([v, v.new_ones(len(v), 1)], dim=1).t(), rows)
    for part, out in zip(q.split(rows), y.split(rows), strict=True):
        scores = product(part.float() * scale, keys)   # [rows, m]
        if not modest:
            scores -= scores.amax(dim=1, keepdim=True)
        sums = product(scores.exp2_().to(v.dtype), values)           # [rows, d + 1], the weights' own sum the last
        torch.div(sums[:, :-1], sums[:, -1:], out=out)


def longest(vectors: Tensor) -> Tensor:
    """The largest length of any: [n, d] -> []. No product of two is larger than that of their lengths."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).amax()
