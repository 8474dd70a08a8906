"""Scores of our predictions by `cell-eval` 0.8 (and `cell-eval2`), beside ours on the same cells.

    python benchmarks/third_party.py [--python PATH] [--out FILE]

A simulated screen is fitted and exported here; the scorers run in the interpreter at PATH (default: this one), which needs nothing of
ours, on the files as they are. `cell-eval` 0.8 averages in single precision, reads counts as well as log1p (normalising them to their
own median), drops the perturbed gene of the row from its discrimination score and divides the rank by the number of conditions.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np

import counterflow as cf
from counterflow.evaluate import metrics
from counterflow.evaluate.cell_eval import CONTROL

SCORE = """
import json, sys
from importlib.metadata import PackageNotFoundError, version

kind, predicted, real, out = sys.argv[1:]
found = {}
try:
    from cell_eval import MetricsEvaluator

    evaluator = MetricsEvaluator(predicted, real, num_threads=1, outdir=out)
    table, _ = evaluator.compute(profile="full", write_csv=False, break_on_error=True)
    found["cell-eval " + version("cell-eval")] = table.to_dicts()
except ImportError:
    pass
try:
    import cell_eval2

    config = cell_eval2.EvalConfig(metrics="full", input_type=kind, device="cpu", num_threads=1)
    table = cell_eval2.compute_metrics(predicted, real, config=config)
    table = table.pivot(on="metric", index="perturbation", values="value")
    found["cell-eval2 " + version("cell-eval2")] = table.to_dicts()
except ImportError:
    pass
print("SCORES", json.dumps(found))
"""

V1 = {"mse": "mse", "mae": "mae", "pearson_delta": "pearson_delta", "pds_l1": "discrimination_score_l1",
      "pds_l2": "discrimination_score_l2", "pds_cosine": "discrimination_score_cosine"}  # fmt: skip
V2 = {"mse": "expr_mse", "mae": "expr_mae", "pearson_delta": "delta_pearson", "pds_l1": "pds_l1", "pds_l2": "pds_l2",
      "pds_cosine": "pds_cosine"}  # fmt: skip


def export(out: Path) -> dict[str, dict[str, Path]]:
    """Files of both input types: a small model's predictions of a cell type whose perturbed cells it never saw."""
    adata = cf.simulate_screen(n_genes=100, n_perturbations=12, n_pairs=0, cells_per_condition=40, n_cell_types=2, seed=1).adata
    held_out = (adata.obs["cell_type"] == "type0") & (adata.obs["perturbation"] != "control")
    adata.obs["split"] = np.where(held_out, "test", "train")
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], split_key="split")
    model = cf.CounterFlow(adata)
    model.train(max_steps=100, progress=False)
    kinds = ("lognorm", "counts")
    return {kind: cf.evaluate.to_cell_eval({"model": model}, adata, out / kind, input_type=kind)["type0"] for kind in kinds}


def score(python: str, kind: str, files: dict[str, Path], out: Path) -> dict[str, list[dict]]:
    """Scorer -> one row per perturbation, computed by `python`."""
    done = subprocess.run(
        [python, "-c", SCORE, kind, str(files["model"]), str(files["real"]), str(out)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.split("SCORES", 1)[1])
    if not found:
        raise SystemExit(f"{python} has neither cell-eval nor cell-eval2: pip install cell-eval==0.8.2 there")
    return found


def ours(files: dict[str, Path], exclude: Callable[[np.ndarray, list[str], str], np.ndarray], denominator: int) -> dict[str, np.ndarray]:
    """Our metrics on the same cells with the scorer's choice of genes; `denominator` is added to ours, conditions - 1."""
    predicted, real = (anndata.read_h5ad(files[name]) for name in ("model", "real"))
    labels = sorted(set(real.obs["target"]) - {CONTROL})
    genes = real.var_names.to_numpy(str)

    def mean(side: anndata.AnnData, label: str) -> np.ndarray:
        return side[side.obs["target"] == label].X.toarray().mean(0, dtype=np.float64)

    control = mean(real, CONTROL)
    p, r = (np.array([mean(side, label) for label in labels]) for side in (predicted, real))
    result = {
        "mse": np.array([metrics.mse(*pair) for pair in zip(p, r, strict=True)]),
        "mae": np.array([metrics.mae(*pair) for pair in zip(p, r, strict=True)]),
        "pearson_delta": np.array([metrics.pearson_delta(*pair, control) for pair in zip(p, r, strict=True)]),
    }
    n = len(labels)
    for name in ("pds_l1", "pds_l2", "pds_cosine"):
        kept = [exclude(genes, labels, label) for label in labels]
        values = [metrics.METRICS[name].function((p - control)[:, k], (r - control)[:, k])[i] for i, k in enumerate(kept)]
        result[name] = 1 - (1 - np.array(values)) * (n - 1) / (n - 1 + denominator)
    return result


def mean_of(rows: list[dict], metric: str) -> float | None:
    """Mean over the perturbations that were scored; None if none was."""
    values = np.array([np.nan if row[metric] is None else row[metric] for row in rows], dtype=float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def perturbed_total(file: Path) -> float:
    """Mean counts behind the logarithms of a perturbed cell: 10,000 where each cell was normalised by its own total."""
    cells = anndata.read_h5ad(file)
    return float(cells[cells.obs["target"] != CONTROL].X.expm1().sum(1, dtype=np.float64).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "third_party.json")
    options = parser.parse_args()
    written: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, files in export(Path(folder)).items():
            for scorer, rows in score(options.python, kind, files, Path(folder) / "scored").items():
                rows.sort(key=lambda row: row["perturbation"])
                old = not scorer.startswith("cell-eval2")
                entry = {"perturbations": len(rows), "means": {m: mean_of(rows, m) for m in rows[0] if m != "perturbation"}}
                if kind == "lognorm":  # of counts each scorer makes profiles of its own
                    row_only, panel = (lambda g, _, own: g != own), (lambda g, all_, _: ~np.isin(g, all_))
                    mine = ours(files, row_only if old else panel, 1 if old else 0)
                    entry["counts_per_cell"] = {name: perturbed_total(files[name]) for name in ("model", "real")}
                    entry["largest_difference_to_ours"] = {
                        name: float(np.abs(mine[name] - [row[(V1 if old else V2)[name]] for row in rows]).max()) for name in mine
                    }
                written.setdefault(scorer, {})[kind] = entry
                print(scorer, kind, json.dumps(entry, indent=1))
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    options.out.write_text(json.dumps(known | written, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
