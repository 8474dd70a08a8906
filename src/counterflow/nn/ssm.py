"""Selective state-space mixers, in the Mamba-2 (SSD) form where each head has one scalar decay (arXiv 2405.21060).

Glossary (as in the paper; letters that mean something else in the rest of the project have a star)::

    b   cells                        n  tokens, l in the paper         h  heads
    p   channels per head            e  state size, N in the paper     q  tokens per chunk
    g   groups of k = h / g heads that share B and C
    x   (b, n, h, p)  what is written to the state
    dt  (b, n, h)     step size, > 0: how much a token writes, and how far the state decays; 0 = the token is skipped
    A   (h,)          decay rate, <= 0; 0 = nothing is ever forgotten
    B*  (b, n, g, e)  where in the state a token writes (its key)
    C*  (b, n, g, e)  where in the state a token reads (its query)
    D*  (h,)          skip connection
    S   (b, h, e, p)  the state
    y   (b, n, h, p)  what is read
    z   (b, n, h p)   gate

The recurrence is::

    S_i = exp(dt_i A) S_{i-1} + B_i (dt_i x_i)^T          y_i = C_i S_i          then + D x_i, once

`selective_scan_loop` says exactly this and is the specification. `selective_scan_chunked` computes the same with matrix products
and is what the mixers call: `BidirectionalSSM` here, for gene tokens, and the causal one of the paper in `counterflow.nn.mamba`.
Both work in fp32 (fp64 for fp64 input) whatever autocast says: decays and sums do not survive bf16.
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
from counterflow.nn.precision import at_least_fp32


def selective_scan_loop(
    x: Float[Tensor, "b n h p"],
    dt: Float[Tensor, "b n h"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b n g e"],
    C: Float[Tensor, "b n g e"],
) -> Float[Tensor, "b n h p"]:
    """The recurrence, one token after another: slow and obvious, the specification of the fast scan."""
    x, dt, A, B, C = at_least_fp32(x, dt, A, B, C)
    B, C = (part.repeat_interleave(x.shape[2] // part.shape[2], dim=2) for part in (B, C))  # b n h e
    state = x.new_zeros(x.shape[0], x.shape[2], B.shape[-1], x.shape[3])
    reads = []
    with torch.autocast(x.device.type, enabled=False):
        for i in range(x.shape[1]):
            decay = torch.exp(dt[:, i] * A)[:, :, None, None]
            state = decay * state + torch.einsum("bhe,bhp->bhep", B[:, i], dt[:, i, :, None] * x[:, i])
            reads.append(torch.einsum("bhe,bhep->bhp", C[:, i], state))
    return torch.stack(reads, dim=1)


def selective_scan_chunked(
    x: Float[Tensor, "b n h p"],
    dt: Float[Tensor, "b n h"],
    A: Float[Tensor, "h"],
    B: Float[Tensor, "b n g e"],
    C: Float[Tensor, "b n g e"],
    chunk: int | None = None,
) -> Float[Tensor, "b n h p"]:
    """The same scan by matrix products inside chunks and a recurrence over chunks.

    Within 1e-5 of the loop relative to `max|y|` in fp32 and 1e-12 in fp64. The fp32 error grows with `chunk`; None takes 32 tokens
    on a CPU (smaller products, less work above the diagonal) and 64 elsewhere (fewer launches).
    """
    x, dt, A, B, C = at_least_fp32(x, dt, A, B, C)
    n_tokens, n_groups = x.shape[1], B.shape[2]
    chunk = min(chunk or (32 if x.device.type == "cpu" else 64), n_tokens)
    padding = -n_tokens % chunk  # padded tokens have dt = 0: they neither write nor decay
    x, dt, B, C = (F.pad(part, (0, 0) * (part.ndim - 2) + (0, padding)) for part in (x, dt, B, C))

    with torch.autocast(x.device.type, enabled=False):
        x = rearrange(x, "b (c q) (g k) p -> b c g k q p", q=chunk, g=n_groups)
        B = rearrange(B, "b (c q) g e -> b c g 1 q e", q=chunk)
        C = rearrange(C, "b (c q) g e -> b c g 1 q e", q=chunk)
        log_decay = rearrange(dt * A, "b (c q) (g k) -> b c g k q", q=chunk, g=n_groups).cumsum(-1)  # from the chunk's start, i included
        dt = rearrange(dt, "b (c q) (g k) -> b c g k q", q=chunk, g=n_groups)
        # Factors of a token go onto what is narrowest: B, C or the products of a chunk, not onto x.

        # 1. Inside a chunk, token i reads what tokens j <= i wrote, decayed from j to i. Mask before exp: above the diagonal it overflows.
        future = torch.ones(chunk, chunk, dtype=torch.bool, device=x.device).triu(1)
        between = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(future, -torch.inf).exp()  # b c g k i j
        y = ((C @ B.mT) * (between * dt[..., None, :])) @ x

        # 2. What each chunk leaves in the state at its end.
        to_end = (log_decay[..., -1:] - log_decay).exp()
        left = (B * (to_end * dt)[..., None]).mT @ x  # b c g k e p

        # 3. Carry the state from chunk to chunk.
        across = log_decay[..., -1].exp()[..., None, None]
        state, before = torch.zeros_like(left[:, 0]), []
        for c in range(left.shape[1]):
            before.append(state)
            state = torch.addcmul(left[:, c], across[:, c], state)

        # 4. Every token also reads the state its chunk began with, decayed up to it.
        y = y + (C * log_decay.exp()[..., None]) @ torch.stack(before, dim=1)
        return rearrange(y, "b c g k q p -> b (c q) (g k) p")[:, :n_tokens]


def unordered_scan(
    x: Float[Tensor, "b n h p"], dt: Float[Tensor, "b n h"], B: Float[Tensor, "b n g e"], C: Float[Tensor, "b n g e"]
) -> Float[Tensor, "b n h p"]:
    """The scan with A = 0, where every token reads what all tokens wrote: linear attention, O(N), permutation-equivariant.

    With nothing forgotten a forward and a backward pass see the same sum, so one sum is enough. It is divided by the sum of the `dt`:
    each token then votes with weight `dt`, and the scale does not depend on the number of tokens.
    """
    x, dt, B, C = at_least_fp32(x, dt, B, C)
    with torch.autocast(x.device.type, enabled=False):
        weighted = rearrange((dt / dt.sum(1, keepdim=True))[..., None] * x, "b n (g k) p -> b n g k p", g=B.shape[2])
        state = torch.einsum("bnge,bngkp->bgkep", B, weighted)
        return rearrange(torch.einsum("bnge,bgkep->bngkp", C, state), "b n g k p -> b n (g k) p")


def initial_dt_bias(n: int, low: float = 1e-3, high: float = 0.1) -> Float[Tensor, "n"]:
    """Biases whose softplus is log-uniform in [low, high]."""
    dt = torch.exp(math.log(low) + torch.rand(n) * (math.log(high) - math.log(low)))
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus


class GatedRMSNorm(nn.Module):
    """`RMSNorm(y * silu(z)) * weight`, normalised within each of `n_groups` equal parts of the channels, in fp32 at least."""

    def __init__(self, width: int, n_groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        self.n_groups, self.eps = n_groups, eps
        self.weight = Parameter(torch.ones(width))

    def forward(self, y: Float[Tensor, "b n d"], z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The gated and normalised channels."""
        y, z = at_least_fp32(y, z)
        gated = (y * F.silu(z)).unflatten(-1, (self.n_groups, -1))
        return (gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + self.eps)).flatten(-2) * self.weight


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
        self.norm = GatedRMSNorm(width)
        self.out_proj = xavier_linear(width, width, bias=False)

    def forward(self, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens; those with `mask` False neither write nor let the state decay."""
        z, x, B, C, dt = self.in_proj(tokens).split(self.sizes, dim=-1)
        x, B, C = F.silu(x), F.silu(B)[:, :, None], F.silu(C)[:, :, None]  # one group: all heads share B and C
        x = rearrange(x, "b n (h p) -> b n h p", h=self.n_heads)
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        if mask is not None:
            dt = dt * mask[..., None]
        y = self.scan(x, dt, B, C) + self.D[:, None] * x  # D x once: both passes of the scan contain token i
        y = rearrange(y, "b n h p -> b n (h p)")
        return self.out_proj(self.norm(y, z).to(tokens.dtype))

    def scan(
        self, x: Float[Tensor, "b n h p"], dt: Float[Tensor, "b n steps"], B: Float[Tensor, "b n 1 e"], C: Float[Tensor, "b n 1 e"]
    ) -> Float[Tensor, "b n h p"]:
        """One unordered sum, or a forward plus a backward scan."""
        if self.order == "none":
            return unordered_scan(x, dt, B, C)
        A_forward, A_backward = -self.A_log.exp()
        dt_forward, dt_backward = dt.chunk(2, dim=-1)
        forward = selective_scan_chunked(x, dt_forward, A_forward, B, C)
        backward = selective_scan_chunked(x.flip(1), dt_backward.flip(1), A_backward, B.flip(1), C.flip(1))
        return forward + backward.flip(1)
