"""Everything a user can get wrong: one clear error, the same through Python and the command line, and nothing written."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import counterflow as cf
from counterflow.cli import main
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.errors import ConfigError, CounterflowError, DataError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
in_column = importlib.import_module("bad_input_spoiling").in_column
sys.path.remove(str(BENCHMARKS))
KEYS = {"perturbation_key": "perturbation", "control": "control"}


@dataclass(frozen=True)
class Fault:
    """What is done to a good screen or to its declaration, and what the message must say."""

    name: str
    says: tuple[str, ...]
    spoil: Callable[[AnnData], AnnData | None] = lambda adata: None
    setup: dict = field(default_factory=dict)
    error: type[CounterflowError] = DataError


def log1p(adata: AnnData) -> None:
    adata.X.data = np.log1p(adata.X.data * 3.7)


def set_value(value: float) -> Callable[[AnnData], None]:
    def spoil(adata: AnnData) -> None:
        adata.X.data[5] = value

    return spoil


def counts_elsewhere(adata: AnnData) -> None:
    adata.layers["raw_counts"] = adata.X.copy()
    log1p(adata)


def duplicate_genes(adata: AnnData) -> None:
    adata.var_names = ["G000", *adata.var_names[:-1]]


def without_controls_of_one_type(adata: AnnData) -> AnnData:
    return adata[~((adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "type1"))].copy()


def split_without_controls(adata: AnnData) -> None:
    adata.obs["split"] = np.where(adata.obs["perturbation"] == "control", "test", "train")


def constant(column: str, value: object) -> Callable[[AnnData], None]:
    return lambda adata: adata.obs.__setitem__(column, value)


FAULTS = [
    Fault("missing key, near", ("'pertubation'", "did you mean 'perturbation'"), setup={"perturbation_key": "pertubation"}),
    Fault("missing key, far", ("'zzz'", "available", "'cell_type'"), setup={"perturbation_key": "zzz"}),
    Fault("missing layer", ("layers", "'count'", "mean 'counts'"), lambda a: a.layers.update(counts=a.X.copy()), {"layer": "count"}),
    Fault("no control", ("'DMSO'", "no cell", "control"), setup={"control": "DMSO"}),
    Fault("only controls", ("every cell", "no perturbation"), lambda a: a[a.obs["perturbation"] == "control"].copy()),
    Fault("no control in one level", ("match_keys", "no control cell", "'type1'"), without_controls_of_one_type,
          {"match_keys": ["cell_type"]}),
    Fault("NaN", ("NaN", "1 values", "cell000000", "gene"), set_value(np.nan)),
    Fault("infinite", ("infinite", "gene"), set_value(np.inf)),
    Fault("negative", ("negative", "gene"), set_value(-1.0)),
    Fault("negative log1p", ("negative", "log1p"), lambda a: (log1p(a), set_value(-1.0)(a)) and None, {"matrix_state": "log1p"}),
    Fault("log1p as counts", ("not integers", "matrix_state='log1p'"), log1p),
    Fault("log1p as counts, counts in a layer", ("not integers", "'raw_counts'"), counts_elsewhere),
    Fault("counts as log1p", ("log1p", "matrix_state='counts'"), setup={"matrix_state": "log1p"}),
    Fault("large counts as log1p", ("largest value is 5000", "counts"), set_value(5000.0), {"matrix_state": "log1p"}),
    Fault("only zeros", ("only zeros",), lambda a: setattr(a, "X", sparse.csr_matrix(a.shape))),
    Fault("huge counts", ("2^24",), set_value(float(2**25))),
    Fault("duplicate genes", ("duplicate gene names", "'G000'", "var_names_make_unique"), duplicate_genes),
    Fault("missing perturbation labels", ("7 cells", "no value", "'perturbation'"), in_column("perturbation", np.nan)),
    Fault("missing covariate labels", ("7 cells", "'cell_type'"), in_column("cell_type", np.nan), {"covariate_keys": "cell_type"}),
    Fault("time is text", ("time_key", "numbers", "'later'"), lambda a: (constant("time", "1")(a), in_column("time", "later")(a)) and None,
          {"time_key": "time"}),
    Fault("negative dose", ("dose", ">= 0"), constant("dose", "-1"), {"dose_key": "dose"}),
    Fault("library smaller than the file", ("library_size_key", "all genes"), constant("n", 1.0), {"library_size_key": "n"}),
    Fault("split without controls", ("split_key", "control", "'train'"), split_without_controls, {"split_key": "split"}),
    Fault("split with odd levels", ("split_key", "'holdout'"), constant("split", "holdout"), {"split_key": "split"}),
    Fault("no cells", ("0 cells",), lambda a: a[:0].copy()),
    Fault("no genes", ("0 genes",), lambda a: a[:, :0].copy()),
    Fault("empty delimiter", ("delimiter",), setup={"delimiter": ""}),
]  # fmt: skip


def spoiled(fault: Fault) -> AnnData:
    adata = simulate_screen(**SMALL, seed=0).adata
    result = fault.spoil(adata)
    return result if isinstance(result, AnnData) else adata


def flags(setup: dict) -> list[str]:
    return [word for name, value in setup.items() for word in (f"--setup.{name}", str(value).replace("'", ""))]


def refuse(words: list[str], capsys) -> str:
    """Run the command; it must end with code 2 and one message."""
    capsys.readouterr()
    assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines(keepends=True) if not line.startswith("warning: ")]
    error = "".join(said)
    assert "Traceback" not in error and error.startswith("error: ") and "internal" not in error
    return error


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_both_faces_refuse_a_bad_screen(fault, tmp_path, capsys):
    adata = spoiled(fault)
    before = adata.copy()
    setup = KEYS | fault.setup
    with pytest.raises(fault.error) as caught:
        cf.CounterFlow.setup_anndata(adata, **setup)
    assert "_counterflow" not in adata.uns and list(adata.obs.columns) == list(before.obs.columns)
    for word in fault.says:
        assert word in str(caught.value)

    file, out = tmp_path / "screen.h5ad", tmp_path / "runs" / "first"
    before.write_h5ad(file)
    error = refuse(["fit", str(file), *flags(setup), "--out", str(out)], capsys)
    for word in fault.says:
        assert word in error
    assert not out.parent.exists()


def test_all_problems_are_reported_together(tmp_path, capsys):
    adata = spoiled(FAULTS[0])
    duplicate_genes(adata)
    set_value(-3.0)(adata)
    with pytest.raises(DataError, match=r"(?s)3 problems.*1\. .*duplicate gene.*2\. .*'perturbatio'.*3\. .*negative"):
        cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbatio", control="control")


def damaged(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "screen.h5ad"
    if kind == "missing":
        simulate_screen(**SMALL).adata[:5].write_h5ad(tmp_path / "scren.h5ad")
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("gene,count\n")
    else:
        simulate_screen(**SMALL).adata.write_h5ad(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", ("does not exist", "did you mean 'scren.h5ad'")),
        ("directory", ("is a directory",)),
        ("empty", ("not an h5ad file", "0 bytes")),
        ("text", ("not an h5ad file",)),
        ("truncated", ("truncated", "MB", "copy it again")),
    ],
)
@pytest.mark.parametrize("verb", ["fit", "doctor"])
def test_both_faces_refuse_a_bad_file(verb, kind, says, tmp_path, capsys):
    path, out = damaged(tmp_path, kind), tmp_path / "runs" / "first"
    with pytest.raises(DataError) as caught:
        cf.read_h5ad(path)
    error = refuse([verb, str(path), *(["--out", str(out), *flags(KEYS)] if verb == "fit" else [])], capsys)
    for word in says:
        assert word in str(caught.value) and word in error
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle: {backbone: mlp}", ("unknown key", "'modle.backbone'", "did you mean 'model.backbone'")),
        ("model: {bakbone: mlp}", ("'model.bakbone'", "did you mean 'model.backbone'")),
        ("setup: {pertubation_key: x}", ("'setup.pertubation_key'", "'setup.perturbation_key'")),
        ("train: {backbone: mlp}", ("'train.backbone'", "'model.backbone'")),
        ("train: {max_steps: many}", ("train.max_steps='many'", "whole number")),
        ("train: {lr: fast}", ("train.lr='fast'", "a number")),
        ("model: {conditioning: film}", ("model.conditioning='film'", "'adaln'")),
        ("model: 3", ("'model' is a section",)),
        ("- a\n- b", ("must hold sections",)),
        ("model: {backbone: mlp", ("not valid YAML",)),
        ("modle: {backbone: &a mlp, space: !!python/object/apply:os.system ['true']}", ("not valid YAML",)),
        ("model: {backbone: mpl}", ("'mpl'", "did you mean 'mlp'")),
        ("model: {space: pac}", ("'pac'", "'pca'")),
        ("model: {backbone_kwargs: {dept: 3}}", ("'dept'", "did you mean 'depth'")),
        ("model: {space_kwargs: {n_component: 3}}", ("'n_component'", "did you mean 'n_components'")),
        ("model: {encoder_kwargs: {widht: 3}}", ("'widht'", "did you mean 'width'")),
        ("model: {source: noise, coupling: ot}", ("coupling='ot'", "noise")),
        ("split: unseen_combinations", ("'unseen_combinations'", "did you mean 'unseen_combination'")),
        ("{split: unseen_dose}", ("unseen_dose", "dose_key")),
        ("{split: nowhere.json}", ("'nowhere.json'", "No such file")),
        ("held_out: NK", ("--held_out needs --split",)),
    ],
)
def test_a_bad_config_is_refused_with_the_near_match(text, says, tmp_path, capsys):
    screen, config, out = tmp_path / "screen.h5ad", tmp_path / "config.yaml", tmp_path / "runs" / "first"
    simulate_screen(**SMALL, seed=0).adata.write_h5ad(screen)
    config.write_text(text)
    error = refuse(["fit", str(screen), *flags(KEYS), "--config", str(config), "--out", str(out)], capsys)
    for word in says:
        assert word in error
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "RUN"], ("--setup.perturbation_key", "counterflow doctor")),
        (["--setup.perturbation_key", "perturbation", "--out", "RUN"], ("--setup.control",)),
        (flags(KEYS), ("--out RUN",)),
        ([*flags(KEYS), "--out", "RUN", "--model.bakbone", "mlp"], ("--model.bakbone", "'model.backbone'")),
        ([*flags(KEYS), "--out", "RUN", "--resume"], ("nothing to resume",)),
        ([*flags(KEYS), "--out", "RUN", "--resume", "--overwrite"], ("exclude each other",)),
        ([*flags(KEYS), "--out", "RUN", "another.h5ad"], ("another.h5ad",)),
        ([*flags(KEYS), "--out", "RUN", "--config", "nowhere.yaml"], ("nowhere.yaml",)),
        ([*flags(KEYS), "--out", "RUN", "--train.max_steps"], ("max_steps", "expected one argument")),
    ],
)
def test_a_bad_command_is_refused(words, says, tmp_path, capsys):
    screen, out = tmp_path / "screen.h5ad", tmp_path / "runs" / "first"
    simulate_screen(**SMALL, seed=0).adata.write_h5ad(screen)
    error = refuse(["fit", str(screen), *(str(out) if word == "RUN" else word for word in words)], capsys)
    for word in says:
        assert word in error
    assert not out.parent.exists()


def test_unknown_options_of_the_python_face_name_their_near_match():
    adata = simulate_screen(**SMALL, seed=0).adata
    cf.CounterFlow.setup_anndata(adata, **KEYS)
    for option, near in (("backbone", "mpl"), ("space", "pac")):
        with pytest.raises(ConfigError, match="did you mean"):
            cf.CounterFlow(adata, **{option: near})
    with pytest.raises(DataError, match="call CounterFlow.setup_anndata"):
        cf.CounterFlow(simulate_screen(**SMALL).adata)


def test_a_real_process_ends_with_code_2_and_one_line(tmp_path):
    source = Path(cf.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "counterflow.cli", "doctor", str(tmp_path / "nothing.h5ad")], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(source)},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "does not exist" in done.stderr and len(done.stderr.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "nothing.h5ad"), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
