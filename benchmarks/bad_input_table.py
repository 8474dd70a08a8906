"""The table of bad inputs: every row of the design, as one or more cases that `bad_inputs.py` and `tests/robustness` run."""

import json
import shutil
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from bad_input_spoiling import (
    ACCEPTED,
    REFUSED,
    SETUP,
    TINY,
    TINY_FLAGS,
    WARNED,
    Case,
    Scene,
    as_type,
    backwards,
    beyond,
    constant_genes,
    controls_in_test,
    controls_of,
    counts_elsewhere,
    dense_file,
    edit,
    empty_cells,
    folder,
    in_column,
    latin1,
    log1p,
    negative_log1p,
    numbered,
    one_cell_group,
    only,
    relabel,
    screen,
    screen_labels,
    set_value,
    shuffled_entries,
    text_file,
    text_matrix,
    trained,
    truncated,
    unreadable_filter,
    without,
)  # fmt: skip
from scipy import sparse

import counterflow as cf
from counterflow.errors import CheckpointError, ConfigError

# ------------------------------------------------------------------------------------------------------------- asking a model


def asked(conditions: Any, **options: Any):
    """Predict in Python, for the cells of the case where it spoils them."""

    def python(scene: Scene) -> AnnData:
        model = cf.CounterFlow.load(trained())
        given = scene.adata if scene.case.spoil is not Case.spoil else None
        return model.predict(given, conditions, n_cells=4, n_steps=2, **options)

    return python


def asked_command(*conditions: str, flags: tuple[str, ...] = ()):
    """The same on the command line."""

    def command(scene: Scene) -> list[str]:
        words = [word for name in conditions for word in ("--condition", name)]
        given = ["--controls", str(scene.file)] if scene.case.spoil is not Case.spoil else []
        out = scene.folder / "out" / "cells.h5ad"
        return ["generate", str(trained()), *words, *given, "--n_cells", "4", "--n_steps", "2", "--out", str(out), *flags]

    return command


def asking(row: int, name: str, outcome: str, says: tuple[str, ...], conditions: tuple[str, ...], flags=(), **options: Any) -> Case:
    """A case that asks the trained model."""
    extra = {key: options.pop(key) for key in ("spoil", "error") if key in options}
    return Case(
        row, name, outcome, says, python=asked(list(conditions), **options), command=asked_command(*conditions, flags=flags), **extra
    )


def genes(n: int) -> Any:
    """The first `n` genes only."""
    return lambda adata: adata[:, :n].copy()


def reversed_genes(adata: AnnData) -> AnnData:
    return adata[:, ::-1].copy()


def more_genes(adata: AnnData) -> AnnData:
    extra = AnnData(sparse.csr_matrix(np.ones((adata.n_obs, 2), dtype=np.float32)), obs=adata.obs[[]])
    extra.var_names = ["EXTRA1", "EXTRA2"]
    joined = AnnData(sparse.csr_matrix(sparse.hstack([adata.X, extra.X])), obs=adata.obs.copy())
    joined.var_names = [*adata.var_names, *extra.var_names]
    return joined


def ensembl(adata: AnnData) -> AnnData:
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    return adata


# ------------------------------------------------------------------------------------------------------------- the other stories


def wide(adata: AnnData) -> AnnData:
    """60,000 genes."""
    counts = sparse.hstack([adata.X, sparse.csr_matrix((adata.n_obs, 60_000 - adata.n_vars), dtype=np.float32)]).tocsr()
    return AnnData(counts, obs=adata.obs.copy(), var=pd.DataFrame(index=[f"G{i:05d}" for i in range(60_000)]))


def fit_backed(scene: Scene) -> None:
    """From a file that stays on disk."""
    adata = anndata.read_h5ad(scene.file, backed="r")
    cf.CounterFlow.setup_anndata(adata, **(SETUP | scene.case.setup))
    cf.CounterFlow(adata, **TINY).train(max_steps=1, batch_size=64, progress=False)


def fit_wide(scene: Scene) -> None:
    cf.CounterFlow.setup_anndata(scene.adata, **SETUP)
    cf.CounterFlow(scene.adata, backbone="mlp", space="raw").train(max_steps=1, memory_limit=1.0, progress=False)


def split_in_python(scene: Scene) -> None:
    from counterflow.cli.screen import split_keys
    from counterflow.data.schema import Setup

    cf.build_split("unseen_perturbation", scene.adata.obs, split_keys(Setup(**SETUP)))


def resume_in_python(scene: Scene) -> None:
    """Train, change one count, and go on."""
    adata, run = screen().copy(), scene.folder / ".run"
    cf.CounterFlow.setup_anndata(adata, **SETUP)
    cf.CounterFlow(adata, **TINY).train(max_steps=2, batch_size=64, run_dir=run, progress=False)
    adata.X.data[0] += 1
    try:
        cf.CounterFlow(adata, **TINY).train(
            max_steps=2, batch_size=64, resume_from=run / "checkpoints" / "last.ckpt", progress=False, force_data="force" in scene.case.name
        )
    finally:
        shutil.rmtree(run)


def resume_command(scene: Scene) -> list[str]:
    """An interrupted run of the good screen, on whose file one count changed since."""
    from counterflow.cli import main

    screen().copy().write_h5ad(scene.file)
    fit = ["fit", str(scene.file), *(word for key, value in SETUP.items() for word in (f"--setup.{key}", value)), *TINY_FLAGS]
    fit += ["--out", str(scene.out), "--quiet"]
    if main(fit) != 0:
        raise RuntimeError("the run to be resumed failed")
    shutil.rmtree(scene.out / "model")
    changed = screen().copy()
    changed.X.data[0] += 1
    changed.write_h5ad(scene.file)
    return [*fit[:-1], "--resume", *scene.case.flags]


def config_command(text: str) -> Any:
    """`fit` with a config file."""

    def command(scene: Scene) -> list[str]:
        (scene.folder / "config.yaml").write_text(text)
        return [
            *("fit", str(scene.file), "--config", str(scene.folder / "config.yaml"), "--out", str(scene.out)),
            *(word for key, value in SETUP.items() for word in (f"--setup.{key}", value)),
        ]

    return command


def built_with(**options: Any) -> Any:
    """The constructor with these options."""

    def python(scene: Scene) -> None:
        cf.CounterFlow.setup_anndata(scene.adata, **SETUP)
        cf.CounterFlow(scene.adata, **options)

    return python


def declared_with(**options: Any) -> Any:
    """A declaration from a mapping, as a config file or a saved model holds it."""
    from counterflow.data.schema import Setup

    return lambda scene: Setup.from_dict(SETUP | options)


def edited_model(scene: Scene) -> Path:
    """A copy of the trained model with an entry that nobody knows, or from a later version."""
    copy = scene.folder / "edited"
    if not copy.exists():
        shutil.copytree(trained(), copy)
        manifest = json.loads((copy / "model.json").read_text())
        manifest |= {"schema": 99} if "newer" in scene.case.name else {"colour": "blue"}
        (copy / "model.json").write_text(json.dumps(manifest))
    return copy


def exploding(scene: Scene) -> None:
    cf.CounterFlow.setup_anndata(scene.adata, **SETUP)
    cf.CounterFlow(scene.adata, **TINY).train(max_steps=40, lr=1e30, batch_size=64, progress=False)


def model_case(name: str, says: tuple[str, ...]) -> Case:
    return Case(
        32, name, REFUSED, says, error=CheckpointError, python=lambda scene: cf.CounterFlow.load(edited_model(scene)),
        command=lambda scene: ["info", str(edited_model(scene))],
    )  # fmt: skip


FIRST = screen_labels()[0]

CASES = [
    Case(1, "NaN", REFUSED, ("1 values", "NaN", "cell000000", "gene"), set_value(np.nan)),
    Case(1, "infinite", REFUSED, ("1 values", "infinite", "cell000000"), set_value(np.inf)),
    Case(2, "negative counts", REFUSED, ("1 negative values", "counts are >= 0", "gene"), set_value(-1.0)),
    Case(2, "negative log1p", REFUSED, ("1 negative values", "log1p values are >= 0"), negative_log1p, {"matrix_state": "log1p"}),
    Case(3, "log1p as counts", REFUSED, ("% of its non-zero values are not integers", "largest", "matrix_state='log1p'"), log1p),
    Case(3, "log1p as counts, counts in a layer", REFUSED, ("not integers", "counts seem to be in 'raw_counts'"), counts_elsewhere),
    Case(4, "counts as log1p", REFUSED, ("declared as log1p", "matrix_state='counts'"), setup={"matrix_state": "log1p"}),
    Case(4, "large counts as log1p", REFUSED, ("largest value is 5000", "matrix_state='counts'"), set_value(5000.0),
         {"matrix_state": "log1p"}),
    *(Case(5, f"X is {kind}", ACCEPTED, spoil=as_type(kind), same=True) for kind in ("int64", "uint32", "float64")),
    Case(5, "X is bool", WARNED, ("fewer than 64 cells",), as_type("bool")),
    Case(5, "counts above 2^24", REFUSED, ("2^24", "cannot be a UMI count"), set_value(float(2**25))),
    Case(6, "X is text", REFUSED, ("adata.X has dtype", "not numbers"), file=text_matrix),
    Case(7, "CSC", WARNED, ("stored by genes (CSC)",), lambda a: setattr(a, "X", sparse.csc_matrix(a.X)), same=True),
    Case(8, "dense", ACCEPTED, spoil=lambda a: setattr(a, "X", a.X.toarray()), same=True),
    Case(8, "a view", ACCEPTED, spoil=lambda a: a[np.arange(a.n_obs)], same=True),
    Case(8, "dense in the file", ACCEPTED, file=dense_file, same=True),
    Case(8, "backed by the file", ACCEPTED, file=dense_file, python=fit_backed),
    Case(8, "backed by the file, cells left out", WARNED, ("3 of 295 cells are left out",), empty_cells, {"drop_empty_cells": True},
         python=fit_backed),
    Case(9, "entries out of order, one split in two", ACCEPTED, spoil=shuffled_entries, same=True),
    Case(10, "an index out of range", REFUSED, ("damaged sparse matrix", "9999", "30 genes"), file=edit("X/indices", beyond)),
    Case(10, "row pointers that go back", REFUSED, ("damaged sparse matrix", "row pointers are corrupt"), file=edit("X/indptr", backwards)),
    Case(11, "empty cells", WARNED, ("3 cells have no count at all", "drop_empty_cells=True"), empty_cells),
    Case(11, "empty cells, dropped", WARNED, ("3 of 295 cells are left out",), empty_cells, {"drop_empty_cells": True}),
    Case(12, "constant genes", WARNED, ("2 genes have the same value in every cell", "'G004', 'G005'"), constant_genes),
    Case(13, "duplicate genes", REFUSED, ("1 duplicate gene names", "'G000'", "var_names_make_unique"),
         lambda a: setattr(a, "var_names", ["G000", *a.var_names[:-1]])),
    Case(14, "duplicate cell names", WARNED, ("294 cell names occur more than once", "obs_names_make_unique"),
         lambda a: setattr(a, "obs_names", ["cell"] * a.n_obs)),
    Case(15, "misspelt column", REFUSED, ("'pertubation' is not a column", "did you mean 'perturbation'"),
         setup={"perturbation_key": "pertubation"}),
    Case(15, "unknown column", REFUSED, ("'zzz' is not a column", "available", "'cell_type'"), setup={"perturbation_key": "zzz"}),
    Case(15, "misspelt layer", REFUSED, ("layer='count' is not in adata.layers", "did you mean 'counts'"),
         lambda a: a.layers.update(counts=a.X.copy()), {"layer": "count"}),
    Case(16, "no control", REFUSED, ("no cell", "is the control 'DMSO'", "labels are 'control' (120)"), setup={"control": "DMSO"}),
    Case(16, "no control in one context", REFUSED, ("1 levels of match_keys", "no control cell ('type1')"), without(controls_of("type1")),
         {"match_keys": ["cell_type"]}),
    Case(16, "no control in one level of a covariate", WARNED, ("1 levels of covariate 'cell_type' have no control cell",),
         without(controls_of("type1")), {"covariate_keys": ["cell_type"]}),
    Case(17, "labels are integers", WARNED, ("fewer than 64 cells",), relabel(numbered), {"control": "0"}),
    Case(17, "labels are booleans", ACCEPTED, spoil=relabel(lambda labels: (labels == "control").to_numpy()), setup={"control": "True"}),
    Case(17, "labels are text, not categories", ACCEPTED, spoil=relabel(lambda labels: labels.astype(object))),
    Case(18, "missing labels", REFUSED, ("7 cells have no value in adata.obs['perturbation']", "drop_missing=True"),
         in_column("perturbation", np.nan)),
    Case(18, "empty labels", REFUSED, ("7 cells have no value", "drop_missing=True"), in_column("perturbation", " ")),
    Case(18, "missing covariates", REFUSED, ("7 cells have no value in adata.obs['cell_type']",), in_column("cell_type", np.nan),
         {"covariate_keys": ["cell_type"]}),
    Case(18, "missing labels, dropped", WARNED, ("7 of 295 cells are left out",), in_column("perturbation", np.nan),
         {"drop_missing": True}),
    Case(19, "a group of one cell", WARNED, ("7 of 8 groups", "fewer than 64 cells", f"'{FIRST}', 1"), one_cell_group),
    Case(20, "one perturbation to split", REFUSED, ("unseen_perturbation", "needs"), only("control", FIRST),
         flags=("--split", "unseen_perturbation"), python=split_in_python),
    Case(20, "only controls", REFUSED, ("every cell", "no perturbation to learn"), only("control")),
    Case(20, "no control to train on", REFUSED, ("split_key='split' leaves no control cell in 'train'",), controls_in_test,
         {"split_key": "split"}),
    asking(21, "unseen perturbation", REFUSED, ("1 perturbations were neither seen", "'KLF1X'", "on_unknown='mean'"), (FIRST, "KLF1X")),
    asking(21, "the same condition twice", WARNED, ("1 of the 2 conditions were asked for before",), (FIRST, FIRST)),
    asking(22, "genes are missing", REFUSED, ("5 of the model's 30 genes are not in var_names ('G025'",), (FIRST,), spoil=genes(25)),
    asking(22, "too many genes are missing", REFUSED, ("5 of the model's 30 genes", "allows 10% of them at most"), (FIRST,),
           ("--missing_genes", "zero"), spoil=genes(25), missing_genes="zero"),
    asking(22, "few genes are missing, zero", WARNED, ("2 of the model's 30 genes", "they count as zero"), (FIRST,),
           ("--missing_genes", "zero"), spoil=genes(28), missing_genes="zero"),
    asking(22, "another order", ACCEPTED, (), (FIRST,), spoil=reversed_genes),
    asking(22, "more genes", WARNED, ("2 genes of these cells are not the model's", "'EXTRA1'"), (FIRST,), spoil=more_genes),
    asking(23, "Ensembl ids", REFUSED, ("30 of the model's 30 genes", "one side has Ensembl ids"), (FIRST,), spoil=ensembl),
    Case(24, "missing file", REFUSED, ("does not exist", "no .h5ad file is in"), file=Path.unlink),
    Case(24, "a folder", REFUSED, ("is a directory",), file=folder),
    Case(24, "empty file", REFUSED, ("not an h5ad file (0 bytes)",), file=lambda path: path.write_bytes(b"")),
    Case(24, "text, renamed", REFUSED, ("not an h5ad file (11 bytes",), file=text_file),
    Case(25, "truncated", REFUSED, ("is truncated", "MB", "copy it again"), file=truncated),
    Case(26, "filter that is not here", REFUSED, ("is compressed with", "(X)", "cannot be read here"), file=unreadable_filter),
    Case(27, "a cell name that is not UTF-8", REFUSED, ("not UTF-8", "the names of obs, row 1"), file=latin1("obs/_index")),
    Case(27, "a label that is not UTF-8", REFUSED, ("not UTF-8", "column 'perturbation' of obs, row 1"),
         file=latin1("obs/perturbation/categories")),
    Case(28, "no cells", REFUSED, ("0 cells", "nothing to learn from"), lambda a: a[:0].copy()),
    Case(28, "no genes", REFUSED, ("0 genes", "nothing to learn from"), lambda a: a[:, :0].copy()),
    Case(29, "60,000 genes and 1 GB", REFUSED, ("this fit needs about", "1.0 GB are memory_limit", "n_top_genes"), wide,
         flags=("--model.space", "raw", "--train.memory_limit", "1"), python=fit_wide, error=ConfigError,
         command=lambda scene: [word for word in Case.command(scene) if word not in TINY_FLAGS[:4]]),
    Case(30, "one count changed", REFUSED, ("the data changed since", "force_data"), python=resume_in_python, command=resume_command),
    Case(30, "one count changed, forced", WARNED, ("fewer than 64 cells",), flags=("--force-data",), python=resume_in_python,
         command=resume_command),
    Case(31, "misspelt option", REFUSED, ("pertubation_key", "did you mean", "perturbation_key"), python=declared_with(pertubation_key="x"),
         command=config_command("setup: {pertubation_key: x}")),
    Case(31, "misspelt option of the network", REFUSED, ("'dept'", "did you mean 'depth'"), python=built_with(backbone_kwargs={"dept": 3}),
         command=config_command("model: {backbone_kwargs: {dept: 3}}"), error=ConfigError),
    Case(31, "wrong type", REFUSED, ("drop_missing='perhaps'",), python=lambda s: fit_with_setup(s, drop_missing="perhaps"),
         command=config_command("setup: {drop_missing: perhaps}")),
    model_case("unknown key in model.json", ("colour",)),
    model_case("newer schema", ("schema 99", "upgrade")),
    Case(33, "the loss explodes", REFUSED, ("at step", "lower lr (now 1e+30)"), python=exploding, flags=("--train.lr", "1e30"),
         command=lambda s: [*Case.command(s)[:-2], "--train.max_steps", "20", *s.case.flags], keeps=("checkpoints/last.ckpt",)),
]  # fmt: skip


def fit_with_setup(scene: Scene, **setup: Any) -> None:
    cf.CounterFlow.setup_anndata(scene.adata, **(SETUP | setup))
