"""Models of a comparison come by name or as recipes; what a recipe may not say is refused before anything is fitted."""

from pathlib import Path

import pytest
import yaml

from counterflow import ConfigError, CounterFlow
from counterflow.cli import main
from counterflow.compare import compare
from counterflow.contender import Contender

RECIPES = sorted(Path(__file__).parents[1].glob("configs/recipes/*.yaml"))


def test_there_is_a_recipe_for_each_engine_and_each_says_what_differs():
    assert [path.stem for path in RECIPES] == ["cellflow", "cfgen", "genot", "scdfm", "scgen", "scldm"]
    for path in RECIPES:
        assert "Differs:" in Contender.of(str(path)).about


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_fits_and_predicts(path, declared):
    one = Contender.of(str(path))
    options = dict(one.model) | ({"space_kwargs": {"max_epochs": 1, "n_latent": 4}} if one.model["space"] == "latent" else {})
    if one.model["space"] == "pca":
        options["space_kwargs"] = {"n_components": 4}
    small = {"XS": {"size": "XS"}, None: one.model["backbone_kwargs"]}
    options["backbone_kwargs"] = small["XS" if "size" in one.model["backbone_kwargs"] else None]
    model = CounterFlow(declared, **options)
    model.train(max_steps=2, batch_size=64, progress=False, **one.train)
    cells = model.predict(conditions=model.vocabulary.entities[0], n_cells=5, **one.predict)
    assert cells.n_obs == 5 and model.config["mmd_weight"] == one.model.get("mmd_weight", 0)


def test_recipes_and_names_in_one_table(tiny_screen, tmp_path):
    adata = tiny_screen.adata.copy()
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control")
    recipe = tmp_path / "mine.yaml"
    content = {
        "about": "like mine. Differs: no.",
        "model": {"backbone": "mlp", "space": "pca", "anchor": "none", "backbone_kwargs": {"size": "XS"}},
    }
    recipe.write_text(yaml.safe_dump(content | {"predict": {"decoder": "sample"}}))
    small = {"model_options": {"space_kwargs": {"n_components": 4}}, "metrics": ("pearson_delta",), "n_halvings": 1, "progress": False}
    table = compare(adata, ["mlp/pca", str(recipe)], split="unseen_combination", budget_steps=2, out=tmp_path / "out", **small)
    assert table.models == ["mlp/pca", "mine"] and "mine: like mine. Differs: no." in table.notes
    recipe.write_text(yaml.safe_dump(content))  # another recipe of the same name: not the same comparison
    with pytest.raises(ConfigError, match="recipes differ"):
        compare(adata, ["mlp/pca", str(recipe)], split="unseen_combination", budget_steps=2, out=tmp_path / "out", **small)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: [", "is not YAML"),
        ("train: {lr: 1}", "no section 'model'"),
        ("model: {space: pca}\nfit: {}", "section 'fit'"),
        ("model: {spaces: pca}", "option model.spaces: did you mean 'space'"),
        ("model: {space: pca}\ntrain: {max_steps: 3}", "sets train.max_steps"),
        ("model: {space: pca}\npredict: {guidanse: 2}", "did you mean 'guidance'"),
        ("model: {space: pca}\npredict: 3", "no list of options"),
    ],
)
def test_what_a_recipe_may_not_say(content, said, tmp_path, capsys):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        Contender.of(str(path))
    code = main(
        [
            "compare",
            "simulated",
            "--setup.perturbation_key",
            "perturbation",
            "--setup.control",
            "control",
            "--models",
            str(path),
            "--out",
            str(tmp_path / "o"),
        ]
    )
    assert code == 2 and not (tmp_path / "o").exists()
    assert "Traceback" not in capsys.readouterr().err


def test_a_recipe_that_is_not_there_and_two_of_one_name(tmp_path, declared):
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        Contender.of(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="one name"):
        compare(declared, ["mlp/pca", "mlp/pca"], split="unseen_combination", out=tmp_path / "out")
