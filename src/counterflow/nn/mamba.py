"""The causal mixers of the Mamba papers, exactly: for sequences that have an order, such as time or dose. Genes have none: see `nn/ssm.py`.

Both are projection, a short causal convolution per channel, selective scan, gate, projection. Weights of trained models come and go through
`counterflow.nn.mamba_weights`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.errors import ConfigError
from counterflow.nn.init import xavier_linear
from counterflow.nn.precision import at_least_fp32
from counterflow.nn.s6 import s6_scan_chunked
from counterflow.nn.ssm import GatedRMSNorm, initial_dt_bias, selective_scan_chunked


class CausalConv(nn.Conv1d):
    """A convolution along the tokens, each channel on its own, that sees the token itself and the `kernel - 1` before it; then SiLU."""

    def __init__(self, channels: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(channels, channels, kernel, groups=channels, padding=kernel - 1, bias=bias)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Tokens in, tokens out; as shifted multiply-adds, which are quicker than a convolution of so few taps."""
        kernel, n_tokens = self.kernel_size[0], x.shape[1]
        padded = F.pad(x, (0, 0, kernel - 1, 0))
        taps = self.weight[:, 0].to(x.dtype)
        y = padded[:, :n_tokens] * taps[:, 0]
        for i in range(1, kernel):
            y = torch.addcmul(y, padded[:, i : i + n_tokens], taps[:, i])
        return F.silu(y if self.bias is None else y + self.bias.to(x.dtype))


class Mamba2Mixer(nn.Module):
    """The Mamba-2 mixer (SSD, arXiv 2405.21060): one scalar decay per head, states read and written by groups of heads.

    `in_proj -> [z | x, B, C | dt]`, convolution on x, B, C, scan, `GatedRMSNorm(y + D x, z)`, `out_proj`.

    Parameters
    ----------
    width
        Width of the tokens.
    head_width
        Channels per head; must divide `expand * width`.
    state
        State size per channel.
    expand
        Inner width over `width`.
    n_groups
        Groups of heads that share B and C, and parts of the channels that are normalised on their own; must divide the number of heads.
    kernel
        Tokens that the convolution sees.
    dt_limits
        The step size is clamped to these.
    bias, conv_bias
        Whether the two projections, and the convolution, have a bias.
    eps
        Of the norm.
    chunk
        Tokens per chunk of the scan; None chooses by device.

    Raises
    ------
    ConfigError
        If the numbers do not divide each other.
    """

    def __init__(
        self,
        width: int,
        *,
        head_width: int = 64,
        state: int = 128,
        expand: int = 2,
        n_groups: int = 1,
        kernel: int = 4,
        dt_limits: tuple[float, float] = (0.0, math.inf),
        bias: bool = False,
        conv_bias: bool = True,
        eps: float = 1e-5,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        inner = expand * width
        n_heads, rest = divmod(inner, head_width)
        if rest or n_heads % n_groups:
            raise ConfigError(
                f"an inner width of {expand} x {width} cannot be split into heads of {head_width} channels in {n_groups} groups: "
                "head_width must divide expand * width, and n_groups the number of heads"
            )
        self.head_width, self.n_groups, self.dt_limits, self.chunk = head_width, n_groups, dt_limits, chunk
        self.sizes = [inner, n_groups * state, n_groups * state]  # x, B, C
        self.in_proj = xavier_linear(width, inner + sum(self.sizes) + n_heads, bias=bias)
        self.conv = CausalConv(sum(self.sizes), kernel, bias=conv_bias)
        self.dt_bias = Parameter(initial_dt_bias(n_heads))
        self.A_log = Parameter(torch.arange(1.0, n_heads + 1).log())
        self.D = Parameter(torch.ones(n_heads))
        self.norm = GatedRMSNorm(inner, n_groups, eps)
        self.out_proj = xavier_linear(inner, width, bias=bias)

    def forward(self, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens, each with those before it.

        Tokens with `mask` False neither write nor let the state decay, and the convolution reads zeros there: at either end of a sequence
        they are as if absent.
        """
        keep = None if mask is None else mask[..., None]
        z, xBC, dt = self.in_proj(tokens).split([self.sizes[0], sum(self.sizes), len(self.D)], dim=-1)
        x, B, C = self.conv(xBC if keep is None else xBC * keep).split(self.sizes, dim=-1)
        x = rearrange(x, "b n (h p) -> b n h p", p=self.head_width)
        B, C = (rearrange(part, "b n (g e) -> b n g e", g=self.n_groups) for part in (B, C))
        dt, dt_bias, A_log, D = at_least_fp32(dt, self.dt_bias, self.A_log, self.D)
        dt = F.softplus(dt + dt_bias).clamp(*self.dt_limits)
        dt = dt if keep is None else dt * keep
        y = selective_scan_chunked(x, dt, -A_log.exp(), B, C, self.chunk) + D[:, None] * x
        return self.out_proj(self.norm(y.flatten(2), z).to(tokens.dtype))


class MambaMixer(nn.Module):
    """The mixer of Mamba-1 (S6, arXiv 2312.00752): a decay for every channel and coordinate of its state, no norm.

    `in_proj -> [x | z]`, convolution on x, `x_proj -> [dt | B | C]`, scan, `(y + D x) silu(z)`, `out_proj`.

    Parameters
    ----------
    width
        Width of the tokens.
    state
        State size per channel.
    expand
        Inner width over `width`.
    kernel
        Tokens that the convolution sees.
    dt_rank
        Width of the bottleneck through which the step size is computed; `width / 16`, rounded up, when None.
    bias, conv_bias
        Whether the two outer projections, and the convolution, have a bias.
    """

    def __init__(
        self,
        width: int,
        *,
        state: int = 16,
        expand: int = 2,
        kernel: int = 4,
        dt_rank: int | None = None,
        bias: bool = False,
        conv_bias: bool = True,
    ) -> None:
        super().__init__()
        inner, dt_rank = expand * width, dt_rank or math.ceil(width / 16)
        self.sizes = [dt_rank, state, state]  # dt, B, C
        self.in_proj = xavier_linear(width, 2 * inner, bias=bias)
        self.conv = CausalConv(inner, kernel, bias=conv_bias)
        self.x_proj = xavier_linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(inner))
        self.A_log = Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = Parameter(torch.ones(inner))
        self.out_proj = xavier_linear(inner, width, bias=bias)

    def forward(self, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens, each with those before it; `mask` as in `Mamba2Mixer`."""
        keep = None if mask is None else mask[..., None]
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        x = self.conv(x if keep is None else x * keep)
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)
        dt, bias, A_log, D = at_least_fp32(F.linear(dt, self.dt_proj.weight), self.dt_proj.bias, self.A_log, self.D)
        dt = F.softplus(dt + bias)
        dt = dt if keep is None else dt * keep
        y = s6_scan_chunked(x, dt, -A_log.exp(), B, C) + D * x
        return self.out_proj((y * F.silu(z)).to(tokens.dtype))
