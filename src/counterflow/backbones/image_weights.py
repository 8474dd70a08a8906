"""Weights of class-conditional DiT and SiT networks: the reference format and that of diffusers, in and out.

A *state* is a dict from names to tensors. `load_image_dit` takes a state or a file and builds the network that fits; `to_reference` and
`to_diffusers` give the state back, the former bit for bit. The formats differ in more than names:

- diffusers keeps a copy of both embedders in every block. They must be equal: trained copies that differ are another network.
- The reference has one linear for queries, keys and values; diffusers has three.
- The reference has a position table among its weights (frozen); diffusers computes it.

The arithmetic differs too, see `dialect` of `counterflow.backbones.image_dit.image_dit`: each format is read in its own.
"""

from __future__ import annotations

import argparse
import math
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from counterflow.backbones.image_dit import WIDTHS, ImageDiT, Objective
from counterflow.errors import CheckpointError, ConfigError
from counterflow.nn.embed import sincos_2d
from counterflow.nn.patches import PatchTokenizer

State = dict[str, Tensor]
Format = Literal["reference", "diffusers"]

POSITIONS, PATCH, TABLE = "pos_embed", "x_embedder.proj.weight", "y_embedder.embedding_table.weight"
OURS = {  # layer in the reference -> layer here; each has a weight and a bias
    "x_embedder.proj": "backbone.tokenizer.proj",
    "t_embedder.mlp.0": "backbone.trunk.embed_time.mlp.0",
    "t_embedder.mlp.2": "backbone.trunk.embed_time.mlp.2",
    "final_layer.adaLN_modulation.1": "backbone.head.film.linear",
    "final_layer.linear": "backbone.head.linear",
}
OURS_IN_BLOCK = {
    "adaLN_modulation.1": "modulation.linear",
    "attn.qkv": "mixer.qkv",
    "attn.proj": "mixer.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}

DIFFUSERS = {  # layer in the reference -> layers in diffusers
    "x_embedder.proj": ["pos_embed.proj"],
    "final_layer.adaLN_modulation.1": ["proj_out_1"],
    "final_layer.linear": ["proj_out_2"],
}
DIFFUSERS_IN_BLOCK = {
    "adaLN_modulation.1": ["norm1.linear"],
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.proj": ["attn1.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
}
DIFFUSERS_COPIES = {  # the same in every block
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}


def read_state(path: str | Path) -> State:
    """The tensors of a `.safetensors` or PyTorch file. Nothing in the file is executed.

    Of a training checkpoint `{"model", "ema", "opt", "args"}` the averaged weights (`ema`) are read, and only those.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or holds something else.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)  # a look inside: nothing is read yet
            if isinstance(content, dict) and "ema" in content:
                content = {name: tensor.clone() for name, tensor in content["ema"].items()}
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
                content = content.get("model", content) if isinstance(content, dict) else content
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"cannot read weights from {path}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{path} holds no dict of tensors, and no training checkpoint with 'ema' or 'model'")
    return content


def load_image_dit(
    weights: str | Path | Mapping[str, Tensor],
    *,
    objective: Objective = "ddpm",
    n_heads: int | None = None,
    state_shape: tuple[int, int, int] | None = None,
    class_dropout: float = 0.1,
) -> ImageDiT:
    """The network that a file or a state of either format holds; its other sizes are read from the shapes of the tensors.

    The tensors become the parameters as they are, without a copy (but for queries, keys and values in the diffusers format).

    Parameters
    ----------
    weights
        A path, or names and tensors.
    objective
        `"ddpm"` for DiT, `"sit"` for SiT.
    n_heads
        Number of heads, which no shape tells; None takes that of the paper for this width.
    state_shape
        Channels, height and width. None: a square of the size in the file, or 32 x 32 for diffusers, whose weights do not say.
        For another size than the file's the fixed positions are computed anew.
    class_dropout
        The label dropout of training; 0 says that the table has no row for "no label".

    Raises
    ------
    CheckpointError
        If the file cannot be read, the format is neither, names are missing or left over, or copies that should be equal differ.
    ConfigError
        If the number of heads is not known, or the options do not fit the weights.
    """
    state = read_state(weights) if isinstance(weights, str | Path) else dict(weights)
    dialect = format_of(state)
    if dialect == "diffusers":
        state = diffusers_to_reference(state)
    else:
        check_names(state, reference_names(depth_of(state, "blocks")))
    width, n_channels, patch, _ = state[PATCH].shape
    side = math.isqrt(state[POSITIONS].shape[1]) if POSITIONS in state else 32 // patch  # files are of square images
    if state_shape is None:
        state_shape = (n_channels, side * patch, side * patch)
    with torch.device("meta"):
        model = ImageDiT(
            state_shape,
            len(state[TABLE]) - (class_dropout > 0),
            class_dropout=class_dropout,
            width=width,
            depth=depth_of(state, "blocks"),
            n_heads=n_heads or heads_of(width),
            patch=patch,
            objective=objective,
            learned_sigma=len(state["final_layer.linear.bias"]) == 2 * n_channels * patch**2,
            dialect=dialect,
        )
    grid = tokenizer_of(model).grid
    if POSITIONS not in state or grid != (side, side):
        state[POSITIONS] = sincos_2d(*grid, width)[None].to(state[PATCH].dtype)
    try:
        model.load_state_dict(from_reference(state), strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the network that they describe: {error}") from error
    return model


def from_reference(state: Mapping[str, Tensor]) -> State:
    """A complete reference state under our names and in our shapes. No tensor is copied.

    Raises
    ------
    CheckpointError
        If names are missing or left over.
    """
    names = reference_names(depth_of(state, "blocks"))
    check_names(state, names)
    ours = {names[name]: tensor for name, tensor in state.items()}
    ours[names[POSITIONS]] = state[POSITIONS][0]  # trained files have a batch axis
    ours[names[PATCH]] = state[PATCH].flatten(1)
    return ours


def to_reference(model: ImageDiT) -> State:
    """The weights of a network in the reference format, sharing memory with the network.

    Raises
    ------
    ConfigError
        If the format cannot hold the network: it is for `conditioning="adaln"`.
    """
    conditioning = model.backbone.trunk.conditioning
    if conditioning != "adaln":
        raise ConfigError(f"the public formats hold networks with conditioning='adaln', not {conditioning!r}")
    ours = model.state_dict()
    theirs = {name: ours[own] for name, own in reference_names(depth_of(ours, "backbone.trunk.blocks")).items()}
    patch = tokenizer_of(model).patch
    theirs[POSITIONS] = theirs[POSITIONS][None]
    theirs[PATCH] = rearrange(theirs[PATCH], "d (c p q) -> d c p q", p=patch, q=patch)
    return theirs


def diffusers_to_reference(state: Mapping[str, Tensor]) -> State:
    """A diffusers state under the names of the reference, without positions, which it does not have.

    Raises
    ------
    CheckpointError
        If names are missing or left over, or the embedders of two blocks differ.
    """
    state = dict(state)
    names = diffusers_names(depth_of(state, "transformer_blocks"))
    check_names(state, (part for parts in names.values() for part in parts))
    reference = {}
    for name, parts in names.items():
        tensors = [state.pop(part) for part in parts]
        if ".attn.qkv." in name:
            reference[name] = torch.cat(tensors)
            continue
        for part, tensor in zip(parts, tensors, strict=True):
            if not torch.equal(tensor, tensors[0]):
                raise CheckpointError(f"{part!r} differs from {parts[0]!r}: blocks that embed differently are not a DiT")
        reference[name] = tensors[0]
    return reference


def to_diffusers(model: ImageDiT) -> State:
    """The weights of a network in the diffusers format, copied; its own embedders go into every block.

    Raises
    ------
    ConfigError
        If the format cannot hold the network: it is for `conditioning="adaln"` with fixed 2-D sin-cos positions.
    """
    reference = to_reference(model)
    n_rows, n_columns = tokenizer_of(model).grid
    positions = reference.pop(POSITIONS)[0]
    if not torch.allclose(positions.float().cpu(), sincos_2d(n_rows, n_columns, positions.shape[1]), atol=0.01):
        raise ConfigError("diffusers computes the positions: only networks with positions='sincos_2d' can be written in its format")
    theirs: State = {}
    for name, parts in diffusers_names(depth_of(reference, "blocks")).items():
        tensors = reference[name].chunk(3) if ".attn.qkv." in name else [reference[name]] * len(parts)
        theirs |= {part: tensor.clone() for part, tensor in zip(parts, tensors, strict=True)}
    return theirs


def format_of(state: Mapping[str, Tensor]) -> Format:
    """Which of the two public formats a state is in.

    Raises
    ------
    CheckpointError
        If it is in neither.
    """
    if PATCH in state:
        return "reference"
    if "pos_embed.proj.weight" in state:
        return "diffusers"
    raise CheckpointError(f"no weights of a DiT: neither {PATCH!r} nor 'pos_embed.proj.weight' is among {sorted(state)[:5]}")


def heads_of(width: int) -> int:
    """The number of heads in the paper's network of this width.

    Raises
    ------
    ConfigError
        If the paper has none.
    """
    known = {numbers["width"]: numbers["n_heads"] for numbers in WIDTHS.values()}
    if width not in known:
        raise ConfigError(f"no weight tells the number of heads, and a width of {width} is not among {list(known)}: say n_heads")
    return known[width]


def tokenizer_of(model: ImageDiT) -> PatchTokenizer:
    """The tokenizer, which knows the patches."""
    tokenizer = model.backbone.tokenizer
    assert isinstance(tokenizer, PatchTokenizer)
    return tokenizer


def depth_of(state: Mapping[str, Tensor], blocks: str) -> int:
    """The number of blocks, counted from the names that start with `blocks`."""
    return len({name.removeprefix(f"{blocks}.").split(".")[0] for name in state if name.startswith(f"{blocks}.")})


def reference_names(depth: int) -> dict[str, str]:
    """Every name of the reference format -> our name."""
    layers = OURS | {
        f"blocks.{i}.{theirs}": f"backbone.trunk.blocks.{i}.{ours}" for i in range(depth) for theirs, ours in OURS_IN_BLOCK.items()
    }
    names = {f"{theirs}.{what}": f"{ours}.{what}" for theirs, ours in layers.items() for what in ("weight", "bias")}
    return names | {POSITIONS: "backbone.tokenizer.positions", TABLE: "labels.table"}


def diffusers_names(depth: int) -> dict[str, list[str]]:
    """Every name of the reference format -> the names of its copies, or of its three parts, in diffusers."""
    layers = dict(DIFFUSERS)
    for theirs, copy in DIFFUSERS_COPIES.items():
        layers[theirs] = [f"transformer_blocks.{i}.{copy}" for i in range(depth)]
    for i in range(depth):
        layers |= {f"blocks.{i}.{one}": [f"transformer_blocks.{i}.{part}" for part in parts] for one, parts in DIFFUSERS_IN_BLOCK.items()}
    names = {f"{one}.{what}": [f"{part}.{what}" for part in parts] for one, parts in layers.items() for what in ("weight", "bias")}
    del names["y_embedder.embedding_table.bias"]
    return names


def check_names(state: Mapping[str, Tensor], expected: Iterable[str]) -> None:
    """Raise a `CheckpointError` unless the names are the expected ones."""
    expected = set(expected)
    wrong = {"missing": expected - set(state), "unknown": set(state) - expected}
    if any(wrong.values()):
        listed = ", ".join(f"{len(names)} {word} ({', '.join(sorted(names)[:3])})" for word, names in wrong.items() if names)
        raise CheckpointError(f"not the weights of a class-conditional DiT: names {listed}")
