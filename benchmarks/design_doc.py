"""What the design names, where it lives, what tests it and where its figures are: `docs/design.md`.

python benchmarks/design_doc.py

Every path is looked up; what was not built says so, with the reason in `docs/decisions.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Part(NamedTuple):
    """A thing with a name. `where` is below src/counterflow, `test` below tests, `result` a page or file of figures."""

    name: str
    where: str
    test: str
    result: str = ""


PARTS: dict[str, list[Part]] = {
    "Networks": [
        Part("DiT over gene or module tokens (`dit`)", "backbones/dit.py", "backbones/test_all.py", "docs/comparison.md"),
        Part("set attention without positions (`set`)", "backbones/set.py", "backbones/test_order.py", "docs/comparison.md"),
        Part("Mamba-style state space over module tokens (`ssm`)", "backbones/ssm.py", "nn/test_ssm.py", "docs/comparison.md"),
        Part("MLP-FiLM on the state vector (`mlp`)", "backbones/mlp.py", "backbones/test_all.py", "docs/comparison.md"),
        Part("long convolution (`longconv`)", "nn/longconv.py", "nn/test_longconv.py", "benchmarks/results/longconv.json"),
        Part("mixers in turn (`hybrid`)", "backbones/hybrid.py", "backbones/test_hybrid.py"),
        Part(
            "dynamics over time or dose (`dynamics`)",
            "conditions/courses.py",
            "conditions/test_courses.py",
            "benchmarks/results/dynamics.md",
        ),
        Part("image DiT through the same trunk (`image_dit`)", "backbones/image_dit.py", "backbones/test_image_dit.py", "docs/image.md"),
        Part("Mamba-1 and Mamba-2 mixers, against others' code", "nn/mamba.py", "nn/test_mamba.py", "docs/parity.md"),
        Part("AdaLN, cross-attention, in-context blocks", "nn/blocks.py", "nn/test_blocks.py", "docs/image.md"),
        Part("cells as tokens of a set", "", "", "docs/decisions.md"),
        Part("attention maps out of a trained model", "", "", "docs/decisions.md"),
    ],
    "Tokens": [
        Part("k genes per token", "nn/tokens.py", "nn/test_tokens.py", "docs/tokens.md"),
        Part("gene sets from a GMT file, clusters of controls", "nn/gene_modules.py", "test_module_tokens.py", "docs/tokens.md"),
        Part("genes in the order of their ranks", "backbones/rank.py", "backbones/test_modules.py", "docs/tokens.md"),
        Part("variable panels: packed equals padded", "nn/packing.py", "nn/test_packing.py", "docs/tokens.md"),
        Part("another panel for a fitted model (`on_panel`)", "panels.py", "test_panels.py", "benchmarks/results/panels.json"),
        Part("training on several panels at once", "", "", "docs/decisions.md"),
        Part("FlexAttention block mask for packed batches", "", "", "docs/decisions.md"),
    ],
    "Flow": [
        Part("rectified flow: path, loss, v and x prediction", "flow/path.py", "flow/test_path.py", "docs/concepts.md"),
        Part(
            "couplings: optimal transport, random, noise, GENOT", "flow/coupling.py", "flow/test_coupling.py", "benchmarks/results/speed.md"
        ),
        Part("unbalanced transport", "", "", "docs/decisions.md"),
        Part("noise added to the path", "", "", "docs/decisions.md"),
        Part("densities of flow time", "flow/time.py", "flow/test_time.py"),
        Part("solvers", "flow/solvers.py", "flow/test_solvers.py", "benchmarks/results/solvers.md"),
        Part("stochastic sampler", "flow/stochastic.py", "flow/test_stochastic.py", "docs/decisions.md"),
        Part("guidance: contrast, classifier-free, interval", "flow/guidance.py", "flow/test_guidance.py"),
        Part("autoguidance by a weaker model", "", "", "docs/decisions.md"),
        Part("effect algebra", "flow/guidance.py", "answers/test_effect_algebra.py", "benchmarks/results/effect_algebra.md"),
        Part("MeanFlow", "flow/few_step.py", "flow/test_few_step.py", "benchmarks/results/few_steps.md"),
        Part("reflow", "reflow.py", "test_few_steps.py", "benchmarks/results/few_steps.md"),
        Part("shortcut models, distillation", "", "", "docs/decisions.md"),
        Part("log-probability, inversion, abduction", "flow/density.py", "flow/test_density.py", "docs/decisions.md"),
        Part("distributional term in the loss (MMD)", "flow/discrepancy.py", "flow/test_discrepancy.py", "benchmarks/results/recipes.md"),
        Part("exponential moving average of weights", "training.py", "test_training.py"),
        Part("post-hoc combination of averages", "", "", "docs/decisions.md"),
        Part("DDPM and DDIM, for images", "diffusion", "diffusion", "docs/image.md"),
    ],
    "Spaces and counts": [
        Part("raw log expression", "spaces/expression.py", "spaces/test_spaces.py", "docs/comparison.md"),
        Part("principal components", "spaces/pca.py", "spaces/test_spaces.py", "docs/comparison.md"),
        Part("latent of scvi-tools, trained here or handed in", "spaces/latent.py", "spaces/test_load_scvi.py", "docs/comparison.md"),
        Part("count transport, sampling, rounding", "spaces/counts.py", "spaces/test_counts.py", "docs/accuracy.md"),
        Part("an autoencoder over sets of genes", "", "", "docs/decisions.md"),
    ],
    "Conditions": [
        Part("sets of perturbations, doses, null and control", "conditions/encoder.py", "conditions/test_encoder.py"),
        Part("features: co-expression, tables", "conditions/features.py", "conditions/test_features.py", "docs/accuracy.md"),
        Part("features of genes, for genes never seen", "conditions/gene_features.py", "backbones/test_featured.py", "docs/tokens.md"),
    ],
    "Around it": [
        Part("splits and the leak audit", "data/splits.py", "data/test_splits.py", "benchmarks/results/planted_leaks.md"),
        Part("simple rules, floor and ceiling", "evaluate/baselines", "evaluate/test_baselines.py", "docs/accuracy.md"),
        Part("recipes in the shape of published engines", "contender.py", "test_contender.py", "benchmarks/results/recipes.md"),
        Part("conventions of public collections", "diagnosis/labelings.py", "diagnosis/test_labelings.py", "docs/formats.md"),
        Part("matrices larger than memory", "data/source.py", "data/test_source.py", "benchmarks/results/loader.md"),
        Part("several devices", "devices.py", "test_devices.py", "docs/devices.md"),
        Part("unconditional generation, trajectories without perturbation", "", "", "docs/decisions.md"),
    ],
}


def page() -> str:
    """The tables as Markdown."""
    lines = ["# What the design names", "", "Made by `python benchmarks/design_doc.py`, which looks every path up.", ""]
    for title, parts in PARTS.items():
        lines += [f"## {title}", "", "| what | where | tested by | figures |", "|---|---|---|---|"]
        for part in parts:
            where = f"`src/counterflow/{part.where}`" if part.where else "not built"
            lines.append(f"| {part.name} | {where} | {f'`tests/{part.test}`' if part.test else ''} | {_link(part.result)} |")
        lines.append("")
    return "\n".join(lines)


def _link(result: str) -> str:
    if not result:
        return ""
    if result.startswith("docs/"):
        return f"[{Path(result).stem}]({Path(result).name})"
    return f"`{result}`"


def missing() -> list[str]:
    """Paths that are named here and do not exist."""
    parts = [part for group in PARTS.values() for part in group]
    named = [f"src/counterflow/{part.where}" for part in parts if part.where] + [f"tests/{part.test}" for part in parts if part.test]
    return [path for path in (*named, *(part.result for part in parts if part.result)) if not (ROOT / path).exists()]


if __name__ == "__main__":
    assert not missing(), missing()
    (ROOT / "docs" / "design.md").write_text(page(), encoding="utf-8")
