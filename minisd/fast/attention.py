"""Attention over a large picture, some queries at a time, by oneDNN's products.

PyTorch's own kernel keeps the scores out of memory as well, but multiplies by MKL, which on AMD's processors is slow.
On processors with AMX it multiplies by that, and is the faster.

In bfloat16 a product's numbers are rounded to eight bits, scores too. So about the largest score of each query is
subtracted within the product, as one more column: then those are small that weigh, and are rounded as finely.
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
SEEN = 256                                        # keys, of as many as there are, that tell about the largest score
SUMS = 8                                          # columns that sum the weights; one would do, but 8 are quicker
SAFE = 100.0                                      # powers of 2 that do not overflow, nor do their sums
ROWS = 64                                         # queries at least, however many keys: each pass reads all of those
AMX = "amx_bf16"


def worthwhile() -> bool:
    """Whether this processor gains by it."""
    return AMX not in cpu_flags()


class ChunkedAttention(Attention):
    """The same projections."""

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
    rows, d = at_once(len(q), len(k)), v.shape[1]
    wide = scaled(q)
    queries, keys = exponents(wide, k, tops(wide, k, rows), rows)
    values = packed(torch.cat([v, v.new_ones(len(v), SUMS)], dim=1).t(), rows)
    for part, out in zip(queries.split(rows), y.split(rows), strict=True):
        sums = product(keys(part).exp2_(), values)                   # [rows, d + SUMS]
        torch.div(sums[:, :d], sums[:, d:d + 1], out=out)


def at_once(queries: int, keys: int) -> int:
    """Queries of a piece."""
    return min(max(CHUNK // keys, ROWS), queries)


class Across:
    """Products with the rows of one matrix [m, d]: [rows, d] -> [rows, m]. In bfloat16 all are written to one place."""

    def __init__(self, matrix: Tensor, rows: int):
        coarse = matrix.dtype == torch.bfloat16
        self.matrix = matrix.t() if coarse else packed(matrix, rows)
        self.room = matrix.new_empty(rows, len(matrix)) if coarse else None

    def __call__(self, part: Tensor) -> Tensor:
        if self.room is None:
            return product(part, self.matrix)
        return torch.mm(part, self.matrix, out=self.room[:len(part)])


def exponents(wide: Tensor, k: Tensor, tops: Tensor, rows: int) -> tuple[Tensor, Across]:
    """Queries, and what makes the scores less `tops` [n, 1] of them, so many at a time; 2 to the power of those are the
    weights: scaled queries [n, d], [m, d] -> [n, d'], in the keys' dtype."""
    more = summands(-tops, k.dtype)
    queries = torch.cat([wide.to(k.dtype), *more], dim=1)
    return queries, Across(torch.cat([k, k.new_ones(len(k), len(more))], dim=1), rows)


def summands(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """float32 numbers as a sum of two of this dtype, where one is too coarse."""
    high = x.to(dtype)
    return [high] if dtype == x.dtype else [high, (x - high).to(dtype)]


def scaled(q: Tensor) -> Tensor:
    """Queries in float32, so that 2 ** score is meant, which is quicker than e ** score."""
    return q.float() * (q.shape[1] ** -0.5 / math.log(2))


def tops(wide: Tensor, k: Tensor, rows: int) -> Tensor:
    """About the largest score of each of the scaled queries: [n, d], [m, d] -> [n, 1], in float32.

    It is the largest of some keys; where powers might overflow by the others, of all.
    """
    some = k[::max(len(k) // SEEN, 1)].float().contiguous()          # with gaps oneDNN is a hundred times as slow
    found = product(wide, some).amax(dim=1, keepdim=True)
    if longest(wide) * longest(k) - found.amin() > SAFE:
        keys = packed(k.float(), rows)
        found = torch.cat([product(part, keys).amax(dim=1, keepdim=True) for part in wide.split(rows)])
    return found


def longest(vectors: Tensor) -> Tensor:
    """The largest length of any: [n, d] -> []. No product of two is larger than that of their lengths."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float32).amax()
