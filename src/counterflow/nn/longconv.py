"""A long convolution whose filter is a small network of the distance (Hyena, arXiv 2302.10866), over tokens in a stored order.

Glossary::

    u     what is convolved: keys times values, channel by channel            B N D
    o     an offset, the place of the answering token minus that of the asking one: -(N-1) .. N-1
    h(o)  the filter of a channel, given by an MLP of o times a window that decays with |o|

What a token hears is `y_i = sum over j of h(i - j) u_j`. Where it differs from the paper: *two-sided*, since modules of genes have no
before and after; *no short convolution*, which would hard-code that neighbours in the stored order interact.

`convolve_plain` is the sum as written, O(N^2): the specification. `convolve` is the same by Fourier transform, O(N log N).
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from counterflow.nn.init import xavier_linear
from counterflow.nn.precision import at_least_fp32


def convolve_plain(u: Float[Tensor, "b n d"], h: Float[Tensor, "o d"]) -> Float[Tensor, "b n d"]:
    """`y_i = sum_j h(i - j) u_j`; row `N - 1 + o` of `h` is the filter at the offset o."""
    place = torch.arange(u.shape[1], device=u.device)
    return torch.einsum("ijd,bjd->bid", h[place[:, None] - place + len(place) - 1], u)


def convolve(u: Float[Tensor, "b n d"], h: Float[Tensor, "o d"]) -> Float[Tensor, "b n d"]:
    """The same by Fourier transform, padded so that no end hears the other around the circle."""
    n = u.shape[1]
    size = 2 ** math.ceil(math.log2(2 * n - 1))
    circle = torch.cat([h[n - 1 :], h.new_zeros(size - len(h), h.shape[1]), h[: n - 1]])  # offsets 0 .. N-1, nothing, -(N-1) .. -1
    u, circle = rearrange(u, "b n d -> b d n"), rearrange(circle, "o d -> d o")
    y = torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(circle), n=size)[..., :n]
    return rearrange(y, "b d n -> b n d")


class ImplicitFilter(nn.Module):
    """The filter of every channel at any offset: an MLP of the offset, times a window that each channel may make wider.

    Parameters
    ----------
    width
        Number of channels D.
    hidden
        Width of the MLP.
    reach
        Windows start with reaches (distances at which they fall to 1/e) between 1 and this.
    """

    N_FREQUENCIES = 8

    def __init__(self, width: int, hidden: int = 32, reach: float = 256.0) -> None:
        super().__init__()
        self.longest = reach
        self.log_reach = Parameter(torch.linspace(0, math.log(reach), width))
        self.first, self.second = xavier_linear(1 + 2 * self.N_FREQUENCIES, hidden), xavier_linear(hidden, hidden)
        self.last = xavier_linear(hidden, width)

    def forward(self, n: int) -> Float[Tensor, "o d"]:
        """At the offsets -(n-1) .. n-1. Nothing in it depends on n but how far it is asked for."""
        weight = self.log_reach
        with torch.autocast(weight.device.type, enabled=False):
            offset = torch.arange(-(n - 1), n, device=weight.device, dtype=weight.dtype)[:, None] / self.longest
            angle = math.pi * offset * 2 ** torch.arange(self.N_FREQUENCIES, device=weight.device, dtype=weight.dtype)
            features = torch.cat([offset, angle.sin(), angle.cos()], dim=1)
            values = self.last(torch.sin(self.second(torch.sin(self.first(features)))))
            reach = self.log_reach.exp()
            return values * torch.exp(-offset.abs() * self.longest / reach) / reach.sqrt()  # loud or not, whatever its reach


class LongConvolution(nn.Module):
    """A mixer: `out(q * (h conv (k * v) + skip * k * v))`. O(N log N), and **its answer depends on the order of the tokens.**

    Parameters
    ----------
    width
        Width of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = xavier_linear(width, 3 * width)
        self.filter = ImplicitFilter(width)
        self.skip = Parameter(torch.ones(width))
        self.out = xavier_linear(width, width)

    def forward(self, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "#b n"] | None = None) -> Float[Tensor, "b n d"]:
        """Mix the tokens; those with `mask` False are not heard, and stand in nobody's way: distances do not count them."""
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        (u,) = at_least_fp32(k * v)  # Fourier transforms do not take bf16
        if mask is None:
            heard = convolve(u, self.filter(u.shape[1]))
        else:
            real_first = (~mask).long().argsort(dim=1, stable=True)[..., None].expand_as(u)
            u = u * mask[..., None]
            heard = torch.empty_like(u).scatter(1, real_first, convolve(u.gather(1, real_first), self.filter(u.shape[1])))
        return self.out((q * (heard + self.skip * u)).to(tokens.dtype))
