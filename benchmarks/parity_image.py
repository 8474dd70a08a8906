"""Our image DiT beside the one of diffusers, with the same random weights; and what loading the largest one from a file costs.

    python benchmarks/parity_image.py

Needs the extra `parity`. Prints one row per comparison: what, the largest measured difference, and what is tolerated.
`tests/parity/test_image_dit.py` runs the same comparisons.

A fresh DiT gives 0 whatever is wrong with it, so every weight is drawn anew first: matrices N(0, .05), vectors N(0, .1), and in the small
network matrices N(0, 1 / columns), which makes outputs of order 1.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from counterflow.backbones.image_dit import SIZES, ImageDiT
from counterflow.backbones.image_weights import diffusers_names, load_image_dit, reference_names, to_diffusers, to_reference

Row = tuple[str, float, float]
FORWARD, GRADIENT = 1e-5, 1e-4
SECONDS, SIZE = 60.0, 1.3  # to load XL/2, and the most memory meanwhile, in sizes of the weights
DRAWS = 20
TIMES = (0, 3, 250, 999)

SMALL = {"width": 64, "depth": 3, "n_heads": 4, "patch": 2, "image_size": 8, "n_classes": 10}
S2 = {**SIZES["S/2"], "image_size": 32, "n_classes": 1000}
PUBLISHED = {  # trainable parameters with learned sigma and 1,001 rows of labels, on latents of 4 x 32 x 32
    "S": (32_865_056, 32_920_448, 33_142_016),
    "B": (130_315_808, 130_426_496, 130_869_248),
    "L": (457_840_672, 457_988_224, 458_578_432),
    "XL": (674_834_720, 675_000_704, 675_664_640),
}


def n_trainable(size: str) -> int:
    """Counted on the meta device."""
    with torch.device("meta"):
        return sum(p.numel() for p in ImageDiT(size=size, objective="ddpm").parameters() if p.requires_grad)


def count_difference() -> int:
    """The worst of the twelve variants."""
    return max(
        abs(n_trainable(f"{name}/{patch}") - count)
        for name, counts in PUBLISHED.items()
        for patch, count in zip((2, 4, 8), counts, strict=True)
    )


def randomise(network: nn.Module, seed: int, *, wide: bool) -> None:
    """No weight as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.1 if parameter.ndim == 1 else 0.05 if wide else parameter[0].numel() ** -0.5
            parameter.normal_(0, spread, generator=generator)


def pair(config: dict[str, int], seed: int = 0, *, dialect: str = "diffusers") -> tuple[nn.Module, ImageDiT]:
    """The network of diffusers and ours, with the same weights. For the reference's arithmetic, theirs is told to use it too."""
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=config["n_heads"],
        attention_head_dim=config["width"] // config["n_heads"],
        in_channels=4,
        out_channels=8,
        num_layers=config["depth"],
        sample_size=config["image_size"],
        patch_size=config["patch"],
        num_embeds_ada_norm=config["n_classes"],
        norm_eps=1e-5 if dialect == "diffusers" else 1e-6,
    ).eval()
    randomise(theirs, seed, wide=config["width"] > 100)
    embedders = [block.norm1.emb for block in theirs.transformer_blocks]
    for embedder in embedders:
        embedder.load_state_dict(embedders[0].state_dict())
        embedder.time_proj.downscale_freq_shift = 1 if dialect == "diffusers" else 0
    shape = (4, config["image_size"], config["image_size"])
    ours = load_image_dit(theirs.state_dict(), n_heads=config["n_heads"], state_shape=shape)
    if dialect == "reference":
        ours = load_image_dit(to_reference(ours), n_heads=config["n_heads"])
    return theirs, ours.eval()


def images(config: dict[str, int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """One image at each of the times under a random class, and one under the null class."""
    generator = torch.Generator().manual_seed(seed)
    t = torch.tensor([*TIMES, *TIMES])
    labels = torch.randint(config["n_classes"], (len(t),), generator=generator)
    labels[len(TIMES) :] = config["n_classes"]
    return torch.randn(len(t), 4, config["image_size"], config["image_size"], generator=generator), t, labels


@torch.no_grad()
def forward_difference(config: dict[str, int], seed: int = 0, *, dialect: str = "diffusers") -> float:
    """Max |ours - theirs| over the times, with a class and with none; the outputs have to be of order 1."""
    theirs, ours = pair(config, seed, dialect=dialect)
    x, t, labels = images(config, seed)
    expected = theirs(x, timestep=t, class_labels=labels).sample
    if not 0.3 < expected.std() < 5:
        raise ValueError(f"outputs with a standard deviation of {expected.std():.2g} prove little")
    return (ours(x, t, labels) - expected).abs().max().item()


@torch.no_grad()
def position_difference(config: dict[str, int]) -> float:
    """Max |ours - theirs| of the position tables."""
    theirs, ours = pair(config)
    return (ours.state_dict()["backbone.tokenizer.positions"] - theirs.pos_embed.pos_embed[0]).abs().max().item()


def gradient_difference(config: dict[str, int]) -> tuple[float, float]:
    """Of a squared error: of the loss, relative; and of its gradient by every weight, relative to the largest of that weight."""
    theirs, ours = pair(config)
    x, t, labels = images(config)
    target = torch.randn(len(t), 8, *x.shape[2:], generator=torch.Generator().manual_seed(1))
    losses = [(out - target).square().mean() for out in (theirs(x, timestep=t, class_labels=labels).sample, ours(x, t, labels))]
    for loss in losses:
        loss.backward()
    by_theirs = {name: weight.grad for name, weight in theirs.named_parameters()}
    expected = {}
    for name, parts in diffusers_names(config["depth"]).items():
        gradients = [by_theirs[part] for part in parts]
        expected[name] = torch.cat(gradients) if ".attn.qkv." in name else torch.stack(gradients).sum(0)  # copies: ours is one
    names = reference_names(config["depth"])
    by_ours = {name: weight.grad for name, weight in ours.named_parameters()}
    if {names[name] for name in expected} != set(by_ours):
        raise ValueError("not every weight was compared")
    worst = max(((by_ours[names[name]].view_as(e) - e).abs().max() / e.abs().max()).item() for name, e in expected.items())
    return abs(losses[1].item() / losses[0].item() - 1), worst


def changed_by_round_trip(config: dict[str, int]) -> tuple[int, int]:
    """How many tensors are not the same bits after reference -> ours -> reference, and after diffusers -> ours -> diffusers."""
    theirs, ours = pair(config)
    reference = {name: torch.randn_like(tensor) for name, tensor in to_reference(ours).items()}
    diffusers = theirs.state_dict()
    again = to_reference(load_image_dit(reference, n_heads=config["n_heads"]))
    return changed(reference, again), changed(diffusers, to_diffusers(ours))


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """How many names or values differ."""
    if before.keys() != after.keys():
        return len(before.keys() ^ after.keys())
    return sum(not torch.equal(before[name], after[name]) for name in before)


def random_reference(size: str) -> dict[str, Tensor]:
    """A complete state of the reference format, random."""
    with torch.device("meta"):
        shapes = to_reference(ImageDiT(size=size, objective="ddpm"))
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in shapes.items()}


LOAD = """
import json, re, sys
from time import perf_counter
from counterflow.backbones.image_weights import load_image_dit
def peak():  # of this process alone: what getrusage gives starts from the parent's
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before, start = peak(), perf_counter()
model = load_image_dit(sys.argv[1])
seconds, after = perf_counter() - start, peak()
size = sum(weights.nbytes for weights in model.state_dict().values())
print(json.dumps({"seconds": seconds, "sizes": (after - before) / size, "bytes": size}))
"""


def load_from_file(size: str = "XL/2") -> dict[str, Any]:
    """Seconds, and peak resident memory above that of the libraries in sizes of the weights, in a process of its own (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pt"
        torch.save(random_reference(size), file)
        done = subprocess.run([sys.executable, "-c", LOAD, str(file)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def image() -> Iterator[Row]:
    """What is compared, the measured difference, the tolerance."""
    yield "trainable parameters of the 12 variants, against the published counts", count_difference(), 0
    yield "position table (S/2), against diffusers", position_difference(S2), 1e-6
    for dialect in ("diffusers", "reference"):
        against = "diffusers" if dialect == "diffusers" else "diffusers set to the reference's time table and epsilon"
        worst = max(forward_difference(SMALL, seed, dialect=dialect) for seed in range(DRAWS))
        yield f"output, small network, {DRAWS} draws, against {against}", worst, FORWARD
        yield f"output, S/2, against {against}", forward_difference(S2, dialect=dialect), FORWARD
    loss, gradient = gradient_difference(S2)
    yield "loss, S/2, relative, against diffusers", loss, GRADIENT
    yield "gradient of every weight, S/2, relative, against diffusers", gradient, GRADIENT
    by_reference, by_diffusers = changed_by_round_trip(S2)
    yield "tensors changed by reference -> ours -> reference", by_reference, 0
    yield "tensors changed by diffusers -> ours -> diffusers", by_diffusers, 0
    loaded = load_from_file()
    yield "XL/2 from a file in the reference format: seconds", loaded["seconds"], SECONDS
    yield "XL/2 from a file in the reference format: peak memory in sizes of the weights", loaded["sizes"], SIZE


def main() -> int:
    start, fine = perf_counter(), True
    for what, measured, tolerance in image():
        print(f"{what:<100} {measured:<8.3g}  (tolerated {tolerance:g})")
        fine &= measured <= tolerance
    print(f"{perf_counter() - start:.0f} s")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
