"""Our Mamba mixers beside independent ones of the same weights: Mamba-2 and Mamba-1 of transformers, Mamba-1 of mambapy.

    python benchmarks/parity_mamba.py

Needs the extra `parity`. Prints one row per comparison: what, the largest measured difference, and what is tolerated. Differences are
relative to the largest value compared. `tests/parity/test_mamba.py` runs the same comparisons.
"""

import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from counterflow.nn.mamba import Mamba2Mixer, MambaMixer
from counterflow.nn.mamba_weights import from_reference
from counterflow.nn.s6 import s6_scan_chunked, s6_scan_loop
from counterflow.nn.ssm import selective_scan_chunked, selective_scan_loop

Row = tuple[str, float, float]
WIDTH, STATE, Q = 48, 16, 32  # Q: tokens per chunk on a CPU
LENGTHS = (1, Q - 1, Q, Q + 1, 200, 2048)
FORWARD, GRADIENT = 1e-6, 1e-4  # tolerances
PLAIN = {torch.float32: 1e-5, torch.float64: 1e-12}  # chunked scan against the loop

MAMBA2 = {  # our options -> the same in the words of transformers
    "one group": ({}, {}),
    "three groups, biases, clamped steps": (
        {"n_groups": 3, "bias": True, "dt_limits": (0.005, 0.05)},
        {"n_groups": 3, "use_bias": True, "time_step_limit": (0.005, 0.05)},
    ),
}
PAIRS = [*(("transformers Mamba-2", options) for options in MAMBA2), ("transformers Mamba-1", ""), ("mambapy Mamba-1", "")]


def randomise(mixer: nn.Module) -> nn.Module:
    """No weight as it was, the output of order 1, and step sizes and decays with which the state remembers for hundreds of tokens."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name == "A_log":
                parameter.uniform_(-2, 2.7, generator=generator)
            elif name in ("dt_bias", "dt_proj.bias"):
                parameter.uniform_(-7, -2, generator=generator)  # through softplus: .001 to .13
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(1, 0.3, generator=generator)
    return mixer


def pair(oracle: str, options: str = "") -> tuple[nn.Module, nn.Module]:
    """Our mixer and the oracle's with the same random weights, passed through the weight map."""
    if oracle == "transformers Mamba-2":
        from transformers import Mamba2Config
        from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as Theirs

        our_options, their_options = MAMBA2[options]
        config = Mamba2Config(
            hidden_size=WIDTH, num_heads=6, head_dim=16, state_size=STATE, expand=2, chunk_size=Q, **{"n_groups": 1} | their_options
        )
        theirs, ours = Theirs(config, layer_idx=0), Mamba2Mixer(WIDTH, head_width=16, state=STATE, **our_options)
    elif oracle == "transformers Mamba-1":
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer as Theirs

        theirs, ours = Theirs(MambaConfig(hidden_size=WIDTH, state_size=STATE), layer_idx=0), MambaMixer(WIDTH, state=STATE)
    else:
        from mambapy.mamba import MambaBlock, MambaConfig

        theirs, ours = MambaBlock(MambaConfig(d_model=WIDTH, n_layers=1, d_state=STATE)), MambaMixer(WIDTH, state=STATE)
    ours.load_state_dict(from_reference(randomise(theirs).state_dict()))
    return ours, theirs


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def tokens(n_tokens: int) -> Tensor:
    """Two sequences."""
    return torch.randn(2, n_tokens, WIDTH, generator=torch.Generator().manual_seed(n_tokens))


def forward_difference(oracle: str, options: str, n_tokens: int) -> float:
    """Of the outputs."""
    ours, theirs = pair(oracle, options)
    with torch.no_grad():
        return difference(ours(tokens(n_tokens)), theirs(tokens(n_tokens)))


def gradients(mixer: nn.Module, n_tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    """Of a loss, by the weights and by the tokens."""
    x = tokens(n_tokens).requires_grad_()
    mixer(x).square().mean().backward()
    return {name: weight.grad for name, weight in mixer.named_parameters()}, x.grad


def gradient_difference(oracle: str, options: str, n_tokens: int = 200) -> float:
    """The worst over all weights and the tokens; each relative to its own largest value."""
    ours, theirs = pair(oracle, options)
    (by_ours, ours_by_x), (by_theirs, theirs_by_x) = gradients(ours, n_tokens), gradients(theirs, n_tokens)
    expected = from_reference(by_theirs)
    return max(difference(ours_by_x, theirs_by_x), *(difference(by_ours[name], expected[name]) for name in expected))


def scan_difference(kind: str, n_tokens: int, dtype: torch.dtype) -> float:
    """Of the chunked scan and the loop."""
    generator = torch.Generator().manual_seed(n_tokens)
    shape = (2, n_tokens, 6)
    dt = 0.001 + 0.1 * torch.rand(shape, generator=generator, dtype=dtype)
    if kind == "Mamba-2":
        x = torch.randn(*shape, 8, generator=generator, dtype=dtype)
        B, C = torch.randn(2, 2, n_tokens, 3, STATE, generator=generator, dtype=dtype)
        inputs = x, dt, -torch.arange(1.0, 7, dtype=dtype), B, C
        return max(difference(selective_scan_chunked(*inputs, chunk=chunk), selective_scan_loop(*inputs)) for chunk in (Q, 2 * Q))
    x = torch.randn(shape, generator=generator, dtype=dtype)
    B, C = torch.randn(2, 2, n_tokens, STATE, generator=generator, dtype=dtype)
    inputs = x, dt, -torch.arange(1.0, STATE + 1, dtype=dtype).repeat(6, 1), B, C
    return difference(s6_scan_chunked(*inputs), s6_scan_loop(*inputs))


def mamba() -> Iterator[Row]:
    """What is compared, the measured difference, the tolerance."""
    for kind in ("Mamba-2", "Mamba-1"):
        for dtype, tolerance in PLAIN.items():
            worst = max(scan_difference(kind, n, dtype) for n in LENGTHS)
            yield f"{kind} scan, chunked against the loop, {str(dtype).removeprefix('torch.')}", worst, tolerance
    for oracle, options in PAIRS:
        name = f"{oracle} mixer" + (f" ({options})" if options else "")
        yield f"{name}, output", max(forward_difference(oracle, options, n) for n in LENGTHS), FORWARD
        yield f"{name}, gradients", gradient_difference(oracle, options), GRADIENT


def main() -> int:
    rows = list(mamba())
    for what, measured, tolerance in rows:
        print(f"{what:<90} {measured:8.1e}  (tolerated {tolerance:.0e})")
    return int(any(not measured <= tolerance for _, measured, tolerance in rows))


if __name__ == "__main__":
    sys.exit(main())
