"""CellFlow's side of `benchmarks/fit_to_quality.py`, for an environment with CellFlow and without counterflow.

    python benchmarks/fit_to_quality_cellflow.py FILE FOLDER HELD_OUT STEPS [STEPS ...]

Trains its smaller network (3 million parameters) on the components in FILE, cell types known by their mean control cell, and after each
number of STEPS writes the predicted states of the held-out type to FOLDER and prints the processor seconds spent in training so far.
"""

import json
import sys
import time

import anndata
import cellflow
import diffrax
import numpy as np

path, folder, held_out, *numbers = sys.argv[1:]
adata = anndata.read_h5ad(path)
adata.obs["is_control"] = (adata.obs["perturbation"] == "control").to_numpy()
types = list(adata.obs["cell_type"].unique())
means = {t: adata.obsm["X_pca"][(adata.obs["is_control"] & (adata.obs["cell_type"] == t)).to_numpy()].mean(0) for t in types}
names = list(adata.obs["perturbation"].unique())
adata.uns["cell_types"] = {t: mean.astype(np.float32) for t, mean in means.items()}
adata.uns["perturbations"] = {name: np.eye(len(names), dtype=np.float32)[i] for i, name in enumerate(names)}
for key in ("perturbation", "cell_type"):
    adata.obs[key] = adata.obs[key].astype("category")
train = adata[(adata.obs["cell_type"] != held_out).to_numpy()].copy()  # it refuses controls without a perturbed counterpart
train.uns.update(adata.uns)

begun = time.process_time()
model = cellflow.model.CellFlow(train, solver="otfm")
model.prepare_data(
    sample_rep="X_pca",
    control_key="is_control",
    perturbation_covariates={"perturbation": ["perturbation"]},
    perturbation_covariate_reps={"perturbation": "perturbations"},
    sample_covariates=["cell_type"],
    sample_covariate_reps={"cell_type": "cell_types"},
    split_covariates=["cell_type"],
)
model.prepare_model(
    time_encoder_dims=(512, 512), time_freqs=128, hidden_dims=(512, 512), decoder_dims=(1024, 1024), condition_embedding_dim=256
)
spent, done = time.process_time() - begun, 0
control = adata[(adata.obs["is_control"] & (adata.obs["cell_type"] == held_out)).to_numpy()].copy()
control.uns.update(adata.uns)
wanted = adata.obs[(adata.obs["cell_type"] == held_out) & ~adata.obs["is_control"]].iloc[:1]
fixed = {"solver": diffrax.Euler(), "dt0": 0.05, "stepsize_controller": diffrax.ConstantStepSize(), "max_steps": 64}
for n in map(int, numbers):
    begun = time.process_time()
    model.train(n - done, batch_size=1024, valid_freq=10**9)
    spent, done = spent + time.process_time() - begun, n
    states = model.predict(control, covariate_data=wanted, sample_rep="X_pca", **fixed)
    np.save(f"{folder}/states_{n}.npy", np.concatenate(list(states.values())))
    print(json.dumps({"steps": n, "seconds": spent, "states": f"{folder}/states_{n}.npy"}), flush=True)
