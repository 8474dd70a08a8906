"""The selective scan of Mamba-1 (S6, arXiv 2312.00752), where every channel has a decay of its own for every coordinate of its state.

Glossary (as in the paper; * as in `counterflow.nn.ssm`)::

    b   cells                     n  tokens, L in the paper     d  channels, D in the paper
    e   state size, N in the paper
    x   (b, n, d)   what is written to the state
    dt  (b, n, d)   step size, > 0; 0 = the token is skipped
    A   (d, e)      decay rate, <= 0
    B*  (b, n, e)   where in the state a token writes; shared by all channels
    C*  (b, n, e)   where in the state a token reads; shared by all channels
    S   (b, d, e)   the state
    y   (b, n, d)   what is read

The recurrence is::

    S_i = exp(dt_i A) S_{i-1} + (dt_i x_i) B_i^T          y_i = S_i C_i

The decay differs along the state, so it cannot be taken out of the product of C and B and the matrix form of Mamba-2 does not apply:
the fast scan composes steps pairwise instead.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from counterflow.nn.precision import at_least_fp32


def s6_scan_loop(
    x: Float[Tensor, "b n d"], dt: Float[Tensor, "b n d"], A: Float[Tensor, "d e"], B: Float[Tensor, "b n e"], C: Float[Tensor, "b n e"]
) -> Float[Tensor, "b n d"]:
    """The recurrence, one token after another: the specification of the fast scan."""
    x, dt, A, B, C = at_least_fp32(x, dt, A, B, C)
    state = x.new_zeros(x.shape[0], *A.shape)
    reads = []
    with torch.autocast(x.device.type, enabled=False):
        for i in range(x.shape[1]):
            state = torch.exp(dt[:, i, :, None] * A) * state + (dt[:, i] * x[:, i])[..., None] * B[:, i, None]
            reads.append(torch.einsum("bde,be->bd", state, C[:, i]))
    return torch.stack(reads, dim=1)


def s6_scan_chunked(
    x: Float[Tensor, "b n d"],
    dt: Float[Tensor, "b n d"],
    A: Float[Tensor, "d e"],
    B: Float[Tensor, "b n e"],
    C: Float[Tensor, "b n e"],
    chunk: int = 32,
) -> Float[Tensor, "b n d"]:
    """The same scan, `chunk` tokens at a time: a doubling scan inside the chunk, and the state carried from chunk to chunk.

    Within 1e-5 of the loop relative to `max|y|` in fp32 and 1e-12 in fp64. Only one chunk of states is held at a time (all of them
    when a gradient is to be taken).
    """
    x, dt, A, B, C = at_least_fp32(x, dt, A, B, C)
    state, reads = x.new_zeros(x.shape[0], *A.shape), []
    with torch.autocast(x.device.type, enabled=False):
        for start in range(0, x.shape[1], chunk):
            part = slice(start, start + chunk)
            decay = torch.exp(dt[:, part, :, None] * A)  # b q d e
            states = (dt[:, part] * x[:, part])[..., None] * B[:, part, None]
            reach = 1  # after each round, `states` holds the sum of the last `reach` tokens and `decay` the product of their decays
            while reach < states.shape[1]:
                states = torch.cat([states[:, :reach], states[:, reach:] + decay[:, reach:] * states[:, :-reach]], dim=1)
                decay = torch.cat([decay[:, :reach], decay[:, reach:] * decay[:, :-reach]], dim=1)
                reach *= 2
            states = states + decay * state[:, None]
            reads.append(torch.einsum("bqde,bqe->bqd", states, C[:, part]))
            state = states[:, -1]
    return torch.cat(reads, dim=1)
