"""Saved models: what is damaged, missing, newer or not trusted is refused; nothing in a file is ever run."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from counterflow import CheckpointError, ConfigError, CounterFlow, DataError, checkpoint

SETUP = {"perturbation_key": "perturbation", "control": "control"}


@pytest.fixture(scope="module")
def saved(tiny_screen, tmp_path_factory):
    """A small model on disk."""
    adata = tiny_screen.adata.copy()
    CounterFlow.setup_anndata(adata, **SETUP)
    model = CounterFlow(adata, backbone_kwargs={"width": 8, "depth": 1}, space_kwargs={"n_components": 4}, encoder_kwargs={"width": 8})
    model.train(max_steps=2, progress=False)
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save(folder)
    return folder, model


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    manifest = json.loads((folder / "model.json").read_text())
    change(manifest)
    (folder / "model.json").write_text(json.dumps(checkpoint.signed(manifest)))


def test_a_model_is_two_safetensors_files_and_json(saved):
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.safetensors", "model.json", "weights.safetensors"]
    manifest = json.loads((folder / "model.json").read_text())
    assert manifest["format"] == "counterflow-model" and set(manifest) == checkpoint.KEYS
    json.dumps(manifest, allow_nan=False)


def test_loaded_is_saved(saved, tiny_screen, tmp_path):
    folder, model = saved
    loaded = CounterFlow.load(folder)
    assert loaded.is_trained and loaded.vocabulary == model.vocabulary and loaded.setup == model.setup and loaded.genes == model.genes
    name = tiny_screen.conditions[0]
    assert np.array_equal(loaded.generate(name, 9).layers["mean"], model.generate(name, 9).layers["mean"])
    loaded.save(tmp_path / "again")
    for file in ("weights.safetensors", "arrays.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()


def test_a_model_without_a_ledger_loads_and_is_known_not_to_be_auditable(saved, copy, tiny_screen, tmp_path):
    edit(copy, lambda manifest: manifest.update(ledger=None))
    old = CounterFlow.load(copy)
    assert old.ledger is None
    adata = tiny_screen.adata.copy()
    pair = next(name for name in tiny_screen.conditions if "+" in name)
    adata.obs["split"] = np.where(adata.obs["perturbation"] == pair, "test", "train")
    CounterFlow.setup_anndata(adata, **SETUP, split_key="split")
    assert old.audit(adata).startswith("no ledger (an older version saved this model)")
    old.save(tmp_path / "again")
    assert CounterFlow.load(tmp_path / "again").ledger is None
    with pytest.raises(DataError, match="training of the flow"):
        saved[1].audit(adata)  # it was fitted on everything


def test_a_current_model_without_a_ledger_entry_is_refused(copy):
    edit(copy, lambda manifest: manifest.pop("ledger"))
    with pytest.raises(CheckpointError, match="unknown or missing entries: ledger"):
        CounterFlow.load(copy)


def test_where_no_controls_are_kept_no_cell_is_in_the_files(declared, tmp_path, capsys):
    from safetensors.numpy import load_file

    from counterflow.cli import main

    model = CounterFlow(declared, keep_controls=0, space_kwargs={"n_components": 4}, encoder_kwargs={"width": 8}, anchor="none")
    model.train(max_steps=1, progress=False)
    model.save(tmp_path / "model")
    text = (tmp_path / "model" / "model.json").read_text()
    assert not any(f'"{name}"' in text for name in declared.obs_names)
    arrays = load_file(tmp_path / "model" / "arrays.safetensors")
    assert arrays["reference.data"].size == arrays["reference.library"].size == 0
    assert main(["info", str(tmp_path / "model"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["control cells kept"] == 0 and facts["trained on cells"] == declared.n_obs
    assert facts["of these controls"] == int((declared.obs["perturbation"] == "control").sum())
    assert facts["genes"] == list(declared.var_names) and facts["perturbation column"] == "perturbation"
    edit(tmp_path / "model", lambda manifest: manifest["training"].pop("cells"))
    assert main(["info", str(tmp_path / "model")]) == 2
    assert "is not what counterflow writes" in capsys.readouterr().err


def test_without_data_what_needs_data_says_so(saved):
    loaded = CounterFlow.load(saved[0])
    for call in (loaded.train, loaded.get_latent_representation):
        with pytest.raises(ConfigError, match="loaded without data"):
            call()


def test_with_data_it_predicts_from_them(saved, tiny_screen):
    folder, model = saved
    loaded = CounterFlow.load(folder, tiny_screen.adata.copy())
    name = tiny_screen.conditions[0]
    assert np.array_equal(loaded.predict(conditions=name).layers["mean"], model.predict(conditions=name).layers["mean"])


def test_prefix_overwrite_and_the_data(saved, tiny_screen, tmp_path):
    _, model = saved
    model.save(tmp_path, prefix="first", save_anndata=True)
    assert (tmp_path / "first" / "adata.h5ad").is_file()
    with pytest.raises(CheckpointError, match="exists: give another directory, or overwrite=True"):
        model.save(tmp_path, prefix="first")
    model.save(tmp_path, prefix="first", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["first"]  # no leftovers
    CounterFlow.load(tmp_path, prefix="first")


def test_overwriting_replaces_models_only(saved, tmp_path):
    _, model = saved
    (tmp_path / "thesis.tex").write_text("years of work")
    for taken in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(CheckpointError, match="not a saved model"):
            model.save(taken, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    model.save(tmp_path / "empty", overwrite=True)


def test_an_interrupted_save_leaves_the_old_model_whole(saved, copy, monkeypatch):
    _, model = saved
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "_fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*no space left on device \(.* MB are free there\)"):
        model.save(copy, overwrite=True)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("file", ["weights.safetensors", "arrays.safetensors"])
def test_damage_is_found(copy, file):
    content = bytearray((copy / file).read_bytes())
    content[-1] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file}.*sha256"):
        CounterFlow.load(copy)
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match="missing: copy the whole"):
        CounterFlow.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=99), "upgrade"),
        (lambda m: m.update(schema=2), "before the first release"),
        (lambda m: m.update(schema="1"), "upgrade"),
        (lambda m: m.update(format="other"), "is not a counterflow-model file"),
        (lambda m: m.update(extra=1), "unknown or missing entries: extra"),
        (lambda m: m.pop("genes"), "unknown or missing entries: genes"),
        (lambda m: m["config"].update(backbone="mpl"), "does not fit this version"),
        (lambda m: m["config"].update(no_such_option=1), "does not fit this version"),
        (lambda m: m["config"]["backbone_kwargs"].update(width=16), "the weights do not fit the model"),
        (lambda m: m["genes"].pop(), "the weights do not fit the model|does not fit this version"),
        (lambda m: m["genes"].__setitem__(0, m["genes"][1]), "genes are not distinct names"),
        (lambda m: m["config"].update(backbone=None), "backbone is None, not a name"),
        (lambda m: m["config"]["backbone_kwargs"].update(width=10**12), "larger than its weights|does not fit this version"),
        (lambda m: m["config"]["backbone_kwargs"].update(depth=10**9), "larger than its weights"),
        (lambda m: m["config"]["space_kwargs"].update(n_components=10**9), "larger than its weights|does not fit this version"),
        (lambda m: m["vocabulary"]["seen"].append("nobody"), "perturbations are not distinct names"),
        (lambda m: m["setup"].update(matrix_state="raw"), "matrix_state is 'raw'"),
        (lambda m: m["setup"].update(delimiter=None), "delimiter of the declaration is None"),
        (lambda m: m["trust"].update(seen=[1e400, 0]), "not a number|the trust in 'seen'|not valid JSON"),
        (lambda m: m["trust"].update(seen=[0.0, 1.0]), "does not fit this version"),
        (lambda m: m["rule"]["conditions"][0].__setitem__(2, "soon"), "does not fit this version"),
        (lambda m: m["intervals"].update(cells=0), "numbers of cells that intervals are for"),
        (lambda m: m["intervals"]["kinds"]["seen"].update(weights=[1.0]), "have no variance"),
        (lambda m: m["intervals"]["kinds"]["seen"]["quantiles"][0].reverse(), "do not rise"),
        (lambda m: m["intervals"]["kinds"]["seen"].update(baseline="luck"), "does not fit this version"),
        (lambda m: m["reference"]["cells"].pop(), "does not fit this version|kept controls"),
        (lambda m: m["files"].update({"../../etc/passwd": {"sha256": "", "bytes": 0}}), "names files that no model has"),
    ],
)
def test_another_manifest_is_refused(copy, change, message):
    edit(copy, change)
    with pytest.raises(CheckpointError, match=message):
        CounterFlow.load(copy)


def test_a_manifest_that_lost_a_bit_is_refused(copy):
    text = (copy / "model.json").read_text()
    (copy / "model.json").write_text(text.replace("\n", " "))
    CounterFlow.load(copy)  # laid out in another way, it says the same
    (copy / "model.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(CheckpointError, match="does not have the sha256 that it names"):
        CounterFlow.load(copy)


def resign(folder, file, change):
    """Change arrays and make every sha256 right again: what a forger would do."""
    from safetensors.numpy import load_file, save_file

    arrays = {name: value.copy() for name, value in load_file(folder / file).items()}
    change(arrays)
    save_file(arrays, folder / file)
    edit(folder, lambda manifest: manifest["files"][file].update(sha256=checkpoint._sha256(folder / file)))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("arrays.safetensors", lambda a: a["reference.indices"].__setitem__(0, 10**6), "kept controls are a damaged matrix"),
        ("arrays.safetensors", lambda a: a["reference.indptr"].__setitem__(1, 10**6), "kept controls are a damaged matrix|does not fit"),
        ("arrays.safetensors", lambda a: a["reference.data"].__setitem__(0, -1), "are not counts"),
        ("arrays.safetensors", lambda a: a["reference.library"].__setitem__(0, np.nan), "library sizes"),
        ("arrays.safetensors", lambda a: a["rule.genes.effect"].__setitem__((0, 0), np.nan), "measured effects on genes"),
        (
            "arrays.safetensors",
            lambda a: a.update({"rule.states.control": a["rule.states.control"][:, 1:].copy()}),
            "means of states",
        ),
        ("arrays.safetensors", lambda a: a.update(features=a["features"][1:].copy()), "does not fit|weights do not fit|features"),
        ("weights.safetensors", lambda a: a["space.mean"].__setitem__(0, np.nan), "space.mean|mean holds values that are no numbers"),
        ("weights.safetensors", lambda a: a.update({"space.mean": a["space.mean"].astype(np.float64)}), "mean holds torch.float64"),
    ],
)
def test_numbers_that_no_fit_gives_are_refused(copy, file, change, message):
    resign(copy, file, lambda arrays: None)
    CounterFlow.load(copy)
    resign(copy, file, change)
    with pytest.raises(CheckpointError, match=message):
        CounterFlow.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff"])
def test_a_manifest_that_is_not_one(copy, text):
    (copy / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="damaged|is not a counterflow-model"):
        CounterFlow.load(copy)


def test_no_model_there(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        CounterFlow.load(tmp_path)


def test_a_run_directory_is_as_good(copy, tiny_screen):
    (copy.parent / "run").mkdir()
    shutil.move(copy, copy.parent / "run" / "model")
    assert CounterFlow.load(copy.parent / "run").is_trained


def test_code_named_in_a_file_is_not_imported(copy, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    edit(copy, lambda m: m["config"].update(backbone="evil:Net"))
    with pytest.raises(CheckpointError, match=r"trust_packages=\['evil'\]"):
        CounterFlow.load(copy)
    with pytest.raises(SystemExit, match="ran"):
        CounterFlow.load(copy, trust_packages=["evil"])


class Mine(nn.Module):
    def __init__(self, state_shape, condition_dim):
        super().__init__()
        self.layer = nn.Linear(state_shape[0] + condition_dim, state_shape[0])

    def forward(self, x, t, condition):
        return self.layer(torch.cat([x, condition.pooled], dim=1))


@pytest.mark.parametrize("backbone", [Mine((4,), 8), Mine], ids=["a ready module", "a class"])
def test_a_module_of_yours_is_given_again(backbone, declared, tmp_path):
    model = CounterFlow(declared, backbone=backbone, space_kwargs={"n_components": 4}, encoder_kwargs={"width": 8})
    model.train(max_steps=2, progress=False)
    model.save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"backbone=MyNet"):
        CounterFlow.load(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model", backbone=Mine((4,), 8))
    assert np.array_equal(loaded.generate("control", 5).layers["mean"], model.generate("control", 5).layers["mean"])


def test_features_of_yours_come_with_the_model(declared, tiny_screen, tmp_path):
    import pandas as pd

    genes = [*tiny_screen.perturbations, "NEW"]
    features = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 3)), index=genes)
    model = CounterFlow(declared, perturbation_features=features, space_kwargs={"n_components": 4}, encoder_kwargs={"width": 8})
    model.train(max_steps=2, progress=False)
    model.save(tmp_path / "model")
    cells = CounterFlow.load(tmp_path / "model").generate("NEW", 5)
    assert set(cells.obs["support"]) == {"features-only"}
    assert np.array_equal(cells.layers["mean"], model.generate("NEW", 5).layers["mean"])
