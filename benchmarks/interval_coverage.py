"""Do nominal intervals of predicted effects hold? The default model, k folds over conditions or contexts.

::

    python benchmarks/interval_coverage.py [--only norman simulated]

Writes ``benchmarks/results/coverage.csv`` (one row per held-out condition and level), ``coverage.md`` and ``coverage.png``. Nothing of
the intervals was chosen on these numbers but the form of the variance (`docs/decisions.md` says what was tried). The real screens are
read from the folder ``COUNTERFLOW_DATA``.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import process_time

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

import counterflow as cf
from counterflow.compare import WithMean
from counterflow.data.simulate import simulate_screen
from counterflow.evaluate.coverage import LEVELS, coverage
from counterflow.evaluate.truth import read_truth

RESULTS = Path(__file__).parent / "results"
FOLDS = 5
TYPES = {"match_keys": ["cell_type"]}


def screens(only: list[str]) -> Iterator[tuple[str, str, AnnData, dict]]:
    """(name, column whose levels are held out, cells, how they are declared)."""
    here = Path(os.environ.get("COUNTERFLOW_DATA", "data"))
    real = {
        "norman": ("norman2019_k562_crispra.h5ad", "perturbation", {}),
        "kang": ("kang2018_pbmc_ifnb.h5ad", "cell_type", TYPES),
        "mcfaline": ("mcfaline2024_gbm_crispri.h5ad", "cell_type", TYPES),
    }
    if "simulated" in only:
        yield "simulated", "perturbation", simulate_screen(seed=0).adata, {"match_keys": ["cell_type"]}
    for name in (name for name in real if name in only):
        file, column, setup = real[name]
        yield name, column, anndata.read_h5ad(here / file), {"library_size_key": "n_counts_full", **setup}


def folds(adata: AnnData, column: str) -> Iterator[np.ndarray]:
    """Masks of held-out cells: a fifth of the conditions at a time, or one level of another column."""
    labels, perturbed = adata.obs[column].astype(str).to_numpy(), (adata.obs["perturbation"] != "control").to_numpy()
    names = np.unique(labels[perturbed])
    dealt = np.random.default_rng(0).permutation(len(names)) % FOLDS if column == "perturbation" else np.arange(len(names))
    for fold in np.unique(dealt):
        yield perturbed & np.isin(labels, names[dealt == fold])


def run(name: str, column: str, adata: AnnData, setup: dict) -> pd.DataFrame:
    """Every condition is held out once."""
    blocks = []
    for fold, test in enumerate(folds(adata, column)):
        started = process_time()
        adata.obs["split"] = np.where(test, "test", "train")
        cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split", **setup)
        model = cf.CounterFlow(adata)
        model.train(progress=False)
        fitted = process_time() - started
        block = coverage(WithMean(model), adata, read_truth(adata, "test", 0), 0).assign(file=name, fold=fold, fit_seconds=fitted)
        print(f"{name} {fold}: {block[block['level'] == 0.9]['covered'].mean():.3f} covered, fitted in {fitted:.0f} s", flush=True)
        blocks.append(block)
    return pd.concat(blocks, ignore_index=True)


def markdown(rows: pd.DataFrame) -> str:
    """Tables of what was covered."""
    lines = [
        "# Do the intervals hold?", "",
        "Written by `benchmarks/interval_coverage.py`. Nominal 90 % intervals of `predict_effect`, the default model; every condition (or "
        "cell",
        "type, or line) held out once. Repeat: the effect's two halves correlate by more than .4. Top: the 20 genes of the largest",
        "predicted effects. Not zero: genes whose interval leaves out no effect. Beyond rule: genes whose interval leaves out what the",
        "best simple rule says.", "",
        *_header("file", "conditions", "covered", "worst", "repeat", "covered", "top covered", "half width", "not zero", "beyond rule"),
    ]  # fmt: skip
    nominal = rows[np.isclose(rows["level"], 0.9)]
    for name, at in nominal.groupby("file", sort=False):
        again = at[at["split_half"] > 0.4]
        shares = [at["covered"].mean(), at["covered"].min()]
        strong = [again["covered"].mean(), again["top_covered"].mean()] if len(again) else [np.nan, np.nan]
        cells = [name, len(at), *map(_share, shares), len(again), *map(_share, strong), f"{at['width'].mean():.3f}"]
        lines.append(_row(*cells, _share(at["excludes_zero"].mean()), _share(at["beyond_baseline"].mean())))
    lines += ["", "By kind of support:", "", *_header("file", "support", "conditions", "covered", "top covered", "half width")]
    for (name, support), at in nominal.groupby(["file", "support"], sort=False):
        lines.append(
            _row(name, support, len(at), _share(at["covered"].mean()), _share(at["top_covered"].mean()), f"{at['width'].mean():.3f}")
        )
    lines += ["", "At other levels, all conditions:", "", *_header("file", *map(_share, LEVELS))]
    for name, of_file in rows.groupby("file", sort=False):
        lines.append(_row(name, *map(_share, of_file.groupby("level")["covered"].mean())))
    return "\n".join(lines) + "\n"


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.1%}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _header(*names: str) -> list[str]:
    return [_row(*names), "|---" * len(names) + "|"]


def plot(rows: pd.DataFrame) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(rows["file"]))
    figure = Figure(figsize=(3 * len(names), 3.1), layout="constrained")
    for axis, name in zip(np.atleast_1d(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        some = rows[rows["file"] == name]
        axis.axline((0, 0), slope=1, color="#999", lw=0.8)
        axis.scatter(some["level"], some["covered"], s=8, color="#0072B2", alpha=0.2, linewidths=0)
        means = some.groupby("level")[["covered", "top_covered"]].mean()
        axis.plot(means.index, means["covered"], color="#0072B2", marker="o", ms=4, label="all genes")
        axis.plot(means.index, means["top_covered"], color="#D55E00", ls="--", label="20 largest predicted")
        axis.set(title=name, xlabel="nominal", xlim=(0.45, 1), ylim=(0, 1.02))
    figure.axes[0].set_ylabel("measured effects inside")
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(RESULTS / "coverage.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["norman", "simulated", "kang", "mcfaline"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    file = RESULTS / "coverage.csv"
    before = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["file"])
    blocks = [run(*screen) for screen in screens(options.only)]
    rows = pd.concat([before[~before["file"].isin(options.only)], *blocks], ignore_index=True)
    rows.to_csv(file, index=False, float_format="%.4g")
    (RESULTS / "coverage.md").write_text(markdown(rows), encoding="utf-8")
    plot(rows)


if __name__ == "__main__":
    main()
