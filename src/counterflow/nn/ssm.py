"""Selective state-space mixers, in the Mamba-2 (SSD) form where each head has one scalar decay (arXiv 2405.21060).

Glossary (as in the paper; the two letters that mean something else in the rest of the project are marked *)::

    b   cells                        n  tokens, l in the paper         h  heads
    p   channels per head            e  state size, N in the paper     q  tokens per chunk
    x   (b, n, h, p)  what is written to the state
    dt  (b, n, h)     step size, > 0: how much a token writes, and how far the state decays; 0 = the token is skipped
    A   (h,)          decay rate, <= 0; 0 = nothing is ever forgotten
    B*  (b, n, e)     where in the state a token writes (its key); one group, shared by all heads
    C*  (b, n, e)     where in the state a token reads (its query); shared by all heads
    D*  (h,)          skip connection
    S   (b, h, e, p)  the state
    y   (b, n, h, p)  what is read
    z   (b, n, h p)   gate

The recurrence is::

    S_i = exp(dt_i A) S_{i-1} + B_i (dt_i x_i)^T          y_i = C_i S_i          then + D x_i, once

`selective_scan_loop` says exactly this and is the specification. `selective_scan_chunked` computes the same with matrix products
and is what the mixer calls. Both work in fp32 (fp64 for fp64 input) whatever autocast says: decays and sums do not survive bf16.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError, near
from counterflow.nn.attention import check_heads
from counterflow.nn.init import xavier_linear


def at_least_fp32(*tensors: Tensor) -> list[Tensor]:
    """The tensors in fp32, or as they are if more precise."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]


def selective_scan_loop(
    x: Float[Tensor, "b n h p"], dt: Float[Tensor, "b n h"], A: Float[Tensor, "h"], B: Float[Tensor, "b n e"], C: Float[Tensor, "b n e"]
) -> Float[Tensor, "b n h p"]:
    """The recurrence, one token after another: slow and obvious, the specification of the fast scan."""
    x, dt, A, B, C = at_least_fp32(x, dt, A, B, C)
    state = x.new_zeros(x.shape[0], x.shape[2], B.shape[-1], x.shape[3])
    reads = []
    with torch.autocast(x.device.type, enabled=False):
        for i in range(x.shape[1]):
            decay = torch.exp(dt[:, i] * A)[:, :, None, None]
            state = decay * state + torch.einsum("be,bhp->bhep", B[:, i], dt[:, i, :, None] * x[:, i])
            reads.append(torch.einsum("be,bhep->bhp", C[:, i], state))
    return torch.stack(reads, dim=1)


def selective_scan_chunked(
    x: Float[Tensor, "b n h p"],
    dt: Float[Tensor, "b n h"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b n e"],
    C: Float[Tensor, "b n e"],
    chunk: int = 64,
) -> Float[Tensor, "b n h p"]:
    """The same scan by matrix products inside chunks and a recurrence over chunks.

    Within 1e-5 of the loop relative to `max|y|` in fp32 and 1e-12 in fp64. The fp32 error grows with `chunk`.
    """
    x, dt, A, B, C = at_least_fp32(x, dt, A, B, C)
    n_tokens = x.shape[1]
    chunk = min(chunk, n_tokens)
    padding = -n_tokens % chunk  # padded tokens have dt = 0: they neither write nor decay
    dt = F.pad(dt, (0, 0, 0, padding))
    written = dt[..., None] * F.pad(x, (0, 0, 0, 0, 0, padding))
    B, C = F.pad(B, (0, 0, 0, padding)), F.pad(C, (0, 0, 0, padding))

    with torch.autocast(x.device.type, enabled=False):
        written = rearrange(written, "b (c q) h p -> b c h q p", q=chunk)
        B = rearrange(B, "b (c q) e -> b c 1 q e", q=chunk)
        C = rearrange(C, "b (c q) e -> b c 1 q e", q=chunk)
        log_decay = rearrange(dt * A, "b (c q) h -> b c h q", q=chunk).cumsum(-1)  # from the chunk's start up to and including i

        # 1. Inside a chunk, token i reads what tokens j <= i wrote, decayed from j to i. Mask before exp: above the diagonal it overflows.
        future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
        between = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(future, -torch.inf).exp()  # b c h i j
        y = ((C @ B.mT) * between) @ written

        # 2. What each chunk leaves in the state at its end.
        to_end = (log_decay[..., -1:] - log_decay).exp()[..., None]
        left = B.mT @ (to_end * written)  # b c h e p

        # 3. Carry the state from chunk to chunk.
        across = log_decay[..., -1].exp()[..., None, None]
        state, before = torch.zeros_like(left[:, 0]), []
        for c in range(left.shape[1]):
            before.append(state)
            state = across[:, c] * state + left[:, c]

        # 4. Every token also reads the state its chunk began with, decayed up to it.
        y = y + log_decay.exp()[..., None] * (C @ torch.stack(before, dim=1))
        return rearrange(y, "b c h q p -> b (c q) h p")[:, :n_tokens]


def unordered_scan(
    x: Float[Tensor, "b n h p"], dt: Float[Tensor, "b n h"], B: Float[Tensor, "b n e"], C: Float[Tensor, "b n e"]
) -> Float[Tensor, "b n h p"]:
    """The scan with A = 0, where every token reads what all tokens wrote: linear attention, O(N), permutation-equivariant.

    With nothing forgotten a forward and a backward pass see the same sum, so one sum is enough. It is divided by the sum of the `dt`:
    each token then votes with weight `dt`, and the scale does not depend on the number of tokens.
    """
    x, dt, B, C = at_least_fp32(x, dt, B, C)
    with torch.autocast(x.device.type, enabled=False):
        weight = dt / dt.sum(1, keepdim=True)
        state = torch.einsum("bne,bnhp->bhep", B, weight[..., None] * x)
        return torch.einsum("bne,bhep->bnhp", C, state)


def initial_dt_bias(n: int, low: float = 1e-3, high: float = 0.1) -> Float[Tensor, "n"]:
    """Biases whose softplus is log-uniform in [low, high]."""
    dt = torch.exp(math.log(low) + torch.rand(n) * (math.log(high) - math.log(low)))
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


class BidirectionalSSM(nn.Module):
    """A selective state-space mixer that sees the tokens from both ends, or as a set.

    Projections, SiLU on x, B and C (no convolution: it would hard-code which tokens are neighbours), scan, `RMSNorm(y * silu(z))`,
    projection.

    `order="stored"` computes `f(x) + flip(g(flip(x)))`; f and g share the projections and have their own A and dt. **It depends on the
    order of the tokens.** `order="none"` sets A = 0 and is exactly permutation-equivariant (see `unordered_scan`).

    Parameters
    ----------
    width
        Width of the tokens; the inner width is the same (the block's MLP does the expanding).
    n_heads
        Number of heads, each with its own decay; must divide `width`.
    state
        State size per channel.
    order
        `"stored"` reads the tokens as a sequence, `"none"` as a set.
    """

    def __init__(self, width: int, n_heads: int, state: int = 16, order: Literal["stored", "none"] = "stored") -> None:
        super().__init__()
        check_heads(width, n_heads)
        if order not in ("stored", "none"):
            raise ConfigError(f"no order {order!r}: {near(order, ('stored', 'none'))}")
        self.order = order
        self.n_heads = n_heads
        n_steps = n_heads if order == "none" else 2 * n_heads
        self.sizes = [width, width, state, state, n_steps]  # z, x, B, C, dt
        self.in_proj = xavier_linear(width, sum(self.sizes), bias=False)
        self.dt_bias = Parameter(initial_dt_bias(n_steps))
        if order == "stored":
            self.A_log = Parameter(torch.arange(1.0, n_heads + 1).log().repeat(2, 1))  # forward, backward
        self.D = Parameter(torch.ones(n_heads))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.out_proj = xavier_linear(width, width, bias=False)

    def forward(self, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens; those with `mask` False neither write nor let the state decay."""
        z, x, B, C, dt = self.in_proj(tokens).split(self.sizes, dim=-1)
        x, B, C = F.silu(x), F.silu(B), F.silu(C)
        x = rearrange(x, "b n (h p) -> b n h p", h=self.n_heads)
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        if mask is not None:
            dt = dt * mask[..., None]
        y = self.scan(x, dt, B, C) + self.D[:, None] * x  # D x once: both passes of the scan contain token i
        y = rearrange(y, "b n h p -> b n (h p)")
        return self.out_proj(self.norm(y * F.silu(z)))

    def scan(
        self, x: Float[Tensor, "b n h p"], dt: Float[Tensor, "b n steps"], B: Float[Tensor, "b n e"], C: Float[Tensor, "b n e"]
    ) -> Float[Tensor, "b n h p"]:
        """One unordered sum, or a forward plus a backward scan."""
        if self.order == "none":
            return unordered_scan(x, dt, B, C)
        A_forward, A_backward = -self.A_log.exp()
        dt_forward, dt_backward = dt.chunk(2, dim=-1)
        chunk = 32 if x.device.type == "cpu" else 64  # smaller products and less work above the diagonal, against fewer launches
        forward = selective_scan_chunked(x, dt_forward, A_forward, B, C, chunk)
        backward = selective_scan_chunked(x.flip(1), dt_backward.flip(1), A_backward, B.flip(1), C.flip(1), chunk)
        return forward + backward.flip(1)
