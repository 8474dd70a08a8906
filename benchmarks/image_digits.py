"""One image transformer, two objectives: rectified flow and diffusion on scikit-learn's digits, quality against sampling steps.

    python benchmarks/image_digits.py [--config configs/image/digits.yaml] [--out benchmarks/results/image_digits.json]

The same network (the last layer of the diffusion one has twice the channels, for the variance), data, optimiser and number of steps.
A sampling step is one call of the network per image for all three samplers (two with guidance): Euler for the flow, DDPM and DDIM
for the diffusion, whose clean image is clipped to [-1, 1] at every step, as is usual in pixels. All start from the same noise.
Judge: a classifier trained on other images; its own accuracy, and the Fréchet distance, are measured on a third part, of which
nothing was trained. Times are seconds of one thread's processor. Writes the numbers and, beside them, grids of samples as PNG;
`benchmarks/image_doc.py` makes docs/image.md of them.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import torch
import yaml
from image_judge import Judge, to_nearest, train_judge
from torch import Tensor

from counterflow.backbones.image_dit import ImageDiT
from counterflow.data.images import Images, ImageSteps, digits, disjoint_parts
from counterflow.diffusion.ddim import ddim
from counterflow.diffusion.ddpm import ddpm
from counterflow.diffusion.module import DiffusionModule
from counterflow.diffusion.respacing import respace
from counterflow.flow.solvers import euler
from counterflow.module import FlowModule
from counterflow.nn.labels import class_ids
from counterflow.training import fit

ROOT = Path(__file__).parents[1]
N_CLASSES = 10
SHOWN = (2, 5, 20, 250)  # steps, in the picture
Model = FlowModule | DiffusionModule


def build(objective: str, config: dict[str, Any], shape: tuple[int, ...]) -> Model:
    """The network of the file under one of the two objectives."""
    torch.manual_seed(config["seed"])
    dit = ImageDiT(shape, N_CLASSES, objective=objective, **config["model"])
    dropout = dit.labels.dropout
    if objective == "ddpm":
        return DiffusionModule(dit.backbone, dit.labels, condition_dropout=dropout)
    options = {"source": "noise", "coupling": "independent", "condition_dropout": dropout} | config["flow"]
    return FlowModule(dit.backbone, dit.labels, shape, **options)


def train(model: Model, images: Images, config: dict[str, Any]) -> float:
    """Train in place; seconds of the processor."""
    options = dict(config["train"])
    stop, batch_size = options.pop("max_steps"), options.pop("batch_size")
    steps = ImageSteps(images.pixels, class_ids(images.labels), batch_size=batch_size, seed=config["seed"], stop=stop)
    start = process_time()
    fit(model, steps, None, seed=config["seed"], progress=False, accelerator="cpu", **options)
    return process_time() - start


def sample_flow(model: FlowModule, x: Tensor, labels: Tensor, steps: int, guidance: float) -> Tensor:
    velocity = model.velocity(class_ids(labels), guidance=guidance, guidance_kind="classifier_free")
    return euler(velocity, x, torch.linspace(0, 1, steps + 1))


def sample_ddpm(model: DiffusionModule, x: Tensor, labels: Tensor, steps: int, guidance: float) -> Tensor:
    denoiser = model.denoiser(class_ids(labels), guidance=guidance)
    return ddpm(denoiser, x, respace(model.schedule, steps), torch.Generator().manual_seed(1), clip=1.0)


def sample_ddim(model: DiffusionModule, x: Tensor, labels: Tensor, steps: int, guidance: float) -> Tensor:
    return ddim(model.denoiser(class_ids(labels), guidance=guidance), x, respace(model.schedule, steps), clip=1.0)


SAMPLERS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "flow, Euler": ("flow", sample_flow),
    "diffusion, DDPM": ("ddpm", sample_ddpm),
    "diffusion, DDIM": ("ddpm", sample_ddim),
}


def judged(judge: Judge, images: Images, training: Images, real: Images) -> dict[str, float]:
    """What the judge says of some images."""
    return {
        "accuracy": judge.accuracy(images),
        "frechet": judge.distance(images.pixels, real.pixels),
        "to_nearest_training_image": to_nearest(images.pixels, training.pixels),
    }


def experiment(config: dict[str, Any], picture: Path | None = None) -> dict[str, Any]:
    """Train both, sample every way, judge."""
    training, for_judge, real = disjoint_parts(digits(), [config["data"]["n_model"], config["data"]["n_judge"]], config["seed"])
    judge = train_judge(for_judge, config["seed"])
    result: dict[str, Any] = {
        "images": {"model": len(training.labels), "judge": len(for_judge.labels), "real": len(real.labels)},
        "real": {"held out": judged(judge, real, training, real), "training": judged(judge, training, training, real)},
        "training": {},
        "rows": [],
    }
    models = {}
    for objective in ("flow", "ddpm"):
        models[objective] = build(objective, config, tuple(training.pixels.shape[1:]))
        seconds = train(models[objective], training, config)
        result["training"][objective] = {"processor_seconds": round(seconds, 1), "parameters": count(models[objective])}
        print(objective, result["training"][objective], flush=True)

    n = config["sample"]["n_images"]
    labels = torch.arange(n) % N_CLASSES
    x = torch.randn(n, *training.pixels.shape[1:], generator=torch.Generator().manual_seed(config["seed"]))
    grids = {}
    for guidance in config["sample"]["guidance"]:
        for name, (objective, sampler) in SAMPLERS.items():
            for steps in config["sample"]["steps"]:
                start = process_time()
                with torch.inference_mode():
                    pixels = sampler(models[objective], x, labels, steps, guidance)
                seconds = process_time() - start
                grids[name, steps, guidance] = pixels[: 2 * N_CLASSES]
                row = {"sampler": name, "steps": steps, "guidance": guidance, **judged(judge, Images(pixels, labels), training, real)}
                result["rows"].append(row | {"processor_seconds": round(seconds, 2)})
                print(result["rows"][-1], flush=True)
    if picture is not None:
        draw(grids, training, max(config["sample"]["guidance"]), picture)
    return result


def count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def draw(grids: dict[tuple[str, int, float], Tensor], training: Images, guidance: float, path: Path) -> None:
    """Two samples of each class per sampler and number of steps, and real images."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [steps for steps in SHOWN if any(steps == known for _, known, _ in grids)]
    fig, axes = plt.subplots(len(SAMPLERS) * len(shown) + 1, 1, figsize=(7, 0.5 * (len(SAMPLERS) * len(shown) + 1)), layout="constrained")
    rows = [(f"{name}, {steps} steps", grids[name, steps, guidance]) for name in SAMPLERS for steps in shown]
    real = torch.cat([training.pixels[training.labels == label][:2] for label in range(N_CLASSES)])
    by_class = [label + N_CLASSES * again for label in range(N_CLASSES) for again in range(2)]
    for ax, (title, pixels) in zip(axes, [*((title, pixels[by_class]) for title, pixels in rows), ("real", real)], strict=True):
        strip = torch.nn.functional.pad(pixels[:, 0], (1, 1, 1, 1), value=-1).permute(1, 0, 2).flatten(1)
        ax.imshow(strip, cmap="gray", vmin=-1, vmax=1)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=7)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "image" / "digits.yaml")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "image_digits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    facts = {"config": config, "torch": torch.__version__, "machine": platform.machine(), "threads": 1}
    result = facts | experiment(config, options.out.with_suffix(".png"))
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
