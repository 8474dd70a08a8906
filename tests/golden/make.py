"""Write the golden models: small saved models of the present schema, and what each of them predicts. One command writes all of them anew::

    python tests/golden/make.py

Do so when the schema changes before it is released, and never afterwards: from then on they are the files that users have, and
`tests/test_golden.py` says whether they can still be read. A new schema then gets golden models of its own, beside these.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from counterflow.checkpoint import SCHEMA

HERE = Path(__file__).parent / f"schema{SCHEMA}"
SMALL = {"keep_controls": 6, "encoder_kwargs": {"width": 8}}
MODELS = {
    "pca_mlp": {"space_kwargs": {"n_components": 4}, "backbone_kwargs": {"width": 8, "depth": 1}},
    "raw_dit": {"space": "raw", "backbone": "dit", "backbone_kwargs": {"width": 16, "depth": 1, "n_heads": 2, "genes_per_token": 4}},
    "latent_mlp": {
        "space": "latent",
        "space_kwargs": {"n_latent": 3, "n_hidden": 8, "max_epochs": 2},
        "backbone_kwargs": {"width": 8, "depth": 1},
    },
}
"""A rule, PCA and an MLP with two contexts; every gene a feature, from noise, through a transformer; an autoencoder."""


def fit(name: str):
    """One golden model."""
    from counterflow import CounterFlow, simulate_screen

    adata = simulate_screen(
        n_genes=16, n_perturbations=3, n_pairs=2, cells_control=90, cells_per_condition=30, n_cell_types=2, seed=5
    ).adata
    CounterFlow.setup_anndata(
        adata, perturbation_key="perturbation", control="control", match_keys=["cell_type"], covariate_keys=["cell_type"]
    )
    model = CounterFlow(adata, **SMALL, **MODELS[name])
    model.train(max_steps=20, batch_size=64, set_size=16, progress=False)
    return model


def predicted(model) -> dict[str, np.ndarray]:
    """What a golden model says of two measured conditions and a combination, from the controls inside it."""
    seen = sorted(model.vocabulary.seen)
    how = {"solver": "euler" if model.config["source"] == "control" else "midpoint", "n_steps": 5}
    cells = model.predict(conditions=[seen[0], seen[1], f"{seen[0]}+{seen[2]}"], n_cells=6, **how)
    new = model.generate(seen[0], 6, **how)
    return {
        "mean": np.ascontiguousarray(cells.layers["mean"]),
        "counts": np.ascontiguousarray(cells.layers["counts"].toarray()),
        "new.mean": np.ascontiguousarray(new.layers["mean"]),
        "new.counts": np.ascontiguousarray(new.layers["counts"].toarray()),
    }


def main() -> None:
    """Fit, save, and note what is predicted."""
    from counterflow import CounterFlow

    for name in MODELS:
        shutil.rmtree(HERE / name, ignore_errors=True)
        fit(name).save(HERE / name)
        save_file(predicted(CounterFlow.load(HERE / name)), HERE / f"{name}.expected.safetensors")
        size = sum(file.stat().st_size for file in [*HERE.glob(f"{name}/*"), HERE / f"{name}.expected.safetensors"])
        print(f"{name}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
