"""`image_dit`: the diffusion transformer on images (DiT, arXiv 2212.09748; SiT, arXiv 2401.08740): the trunk of `dit`, with patches.

`image_dit` makes the backbone, which reads a `Condition` like every other. `ImageDiT` adds the label table: together they are the
network that the papers and their trained weights call DiT or SiT. With the engine, `FlowModule(dit.backbone, dit.labels, ...)` or
`DiffusionModule(dit.backbone, dit.labels)`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from counterflow.backbones.sizes import image_shape, pick_size
from counterflow.backbones.token import TokenBackbone
from counterflow.errors import ConfigError, near
from counterflow.nn.attention import SelfAttention
from counterflow.nn.embed import TimeEmbedding
from counterflow.nn.labels import LabelTable, class_ids
from counterflow.nn.patches import PatchHead, PatchTokenizer, Positions
from counterflow.nn.trunk import Conditioning, Trunk

WIDTHS = {
    "S": {"width": 384, "depth": 12, "n_heads": 6},
    "B": {"width": 768, "depth": 12, "n_heads": 12},
    "L": {"width": 1024, "depth": 24, "n_heads": 16},
    "XL": {"width": 1152, "depth": 28, "n_heads": 16},
}
SIZES = {f"{name}/{patch}": {**numbers, "patch": patch} for name, numbers in WIDTHS.items() for patch in (2, 4, 8)}

Objective = Literal["flow", "ddpm", "sit"]
Dialect = Literal["reference", "diffusers"]


class Reading(NamedTuple):
    """How the network's input time and output channels are meant."""

    time_scale: float  # what a time is multiplied by before it meets the sinusoids
    learned_sigma: bool  # by default, the last linear has twice the channels of the image
    gives_sigma: bool  # both halves are given out: the noise, then the numbers that choose its variance


OBJECTIVES = {
    "flow": Reading(1000.0, False, False),  # velocity, t in [0, 1]
    "ddpm": Reading(1.0, True, True),  # noise and variance, t = 0 .. 999
    "sit": Reading(1.0, True, False),  # velocity, t in [0, 1] as it is: trained so, and the second half dropped
}


class Quirks(NamedTuple):
    """Where public implementations of the same weights differ."""

    closed_frequencies: bool
    mlp_norm_eps: float


DIALECTS = {"reference": Quirks(False, 1e-6), "diffusers": Quirks(True, 1e-5)}


def image_dit(
    state_shape: tuple[int, ...],
    condition_dim: int | None,
    *,
    size: str = "S/2",
    conditioning: Conditioning = "adaln",
    width: int | None = None,
    depth: int | None = None,
    n_heads: int | None = None,
    patch: int | None = None,
    positions: Positions = "sincos_2d",
    objective: Objective = "flow",
    learned_sigma: bool | None = None,
    dialect: Dialect = "reference",
    checkpointing: bool = False,
) -> TokenBackbone:
    """A transformer over the patches of an image.

    Parameters
    ----------
    state_shape
        Channels, height and width: `(4, 32, 32)` for the latents of 256 x 256 pixels.
    condition_dim
        Width of the condition; None if it has the width of the network already, as the rows of a `LabelTable` do.
    size
        `"S"`, `"B"`, `"L"` or `"XL"` with patches of 2, 4 or 8 pixels, such as `"XL/2"`; `width`, `depth`, `n_heads` and `patch`
        override its numbers.
    conditioning
        See `counterflow.nn.trunk.Trunk`; the papers' trained networks are `"adaln"`.
    positions
        `"sincos_2d"`, `"sincos_1d"` or `"learned"`, see `counterflow.nn.patches.PatchTokenizer`.
    objective
        `"flow"`: a velocity at t in [0, 1]. `"ddpm"`: noise and variance at t = 0 .. 999 (DiT). `"sit"`: a velocity at t in [0, 1]
        that is not scaled, with the second half of the output channels dropped (SiT).
    learned_sigma
        Whether the last layer has twice the channels; None: as the objective's trained weights have it.
    dialect
        `"reference"`, or the arithmetic of `"diffusers"`: another table of time frequencies, and another epsilon before the MLP.
    checkpointing
        Trade time for memory: recompute each block in the backward pass.

    Raises
    ------
    ConfigError
        If the state is no image, or an option does not exist or does not fit.
    """
    shape = image_shape(state_shape)
    chosen = pick_size(SIZES, size, width=width, depth=depth, n_heads=n_heads, patch=patch)
    for name, value, known in (("objective", objective, OBJECTIVES), ("dialect", dialect, DIALECTS)):
        if value not in known:
            raise ConfigError(f"no {name} {value!r}: {near(value, known)}")
    reading, quirks = OBJECTIVES[objective], DIALECTS[dialect]
    n_sigma = shape[0] if (reading.learned_sigma if learned_sigma is None else learned_sigma) else 0

    embed_time = TimeEmbedding(chosen["width"], reading.time_scale, closed=quirks.closed_frequencies)
    for layer in embed_time.mlp:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    trunk = Trunk(
        chosen["width"],
        chosen["depth"],
        condition_dim,
        lambda: SelfAttention(chosen["width"], chosen["n_heads"]),
        conditioning,
        n_heads=chosen["n_heads"],
        embed_time=embed_time,
        checkpointing=checkpointing,
    )
    for block in trunk.blocks:
        norm = block.get_submodule("norm_mlp")
        assert isinstance(norm, nn.LayerNorm)
        norm.eps = quirks.mlp_norm_eps
    given, unused = (shape[0] + n_sigma, 0) if reading.gives_sigma else (shape[0], n_sigma)
    head = PatchHead((given, *shape[1:]), chosen["width"], chosen["patch"], unused)
    return TokenBackbone(PatchTokenizer(shape, chosen["width"], chosen["patch"], positions), trunk, head)


class ImageDiT(nn.Module):
    """A class-conditional image network: `backbone(x, t, labels(y))`.

    Parameters
    ----------
    state_shape
        Channels, height and width.
    n_classes
        Number of classes; label `n_classes` means "no label".
    class_dropout
        Probability in training that a label is replaced by "no label"; 0 leaves "no label" out of the table.
    **backbone_kwargs
        Handed on to `image_dit`.

    Examples
    --------
    >>> dit = ImageDiT((4, 32, 32), 1000, size="XL/2", objective="ddpm")  # doctest: +SKIP
    >>> noise_and_variance = dit(x, t, labels)  # doctest: +SKIP
    """

    broadcasts = True

    def __init__(
        self, state_shape: tuple[int, ...] = (4, 32, 32), n_classes: int = 1000, *, class_dropout: float = 0.1, **backbone_kwargs: Any
    ) -> None:
        super().__init__()
        self.backbone = image_dit(state_shape, None, **backbone_kwargs)
        assert isinstance(self.backbone.tokenizer, PatchTokenizer)
        self.labels = LabelTable(n_classes, self.backbone.tokenizer.width, class_dropout)

    def forward(self, x: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b k h w"]:
        """What the objective says: a velocity of C channels, or noise and variance of 2 C."""
        return self.backbone(x, t, self.labels(class_ids(labels)))
