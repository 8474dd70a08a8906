"""A leak of every kind, planted in a tiny screen, and what the two lines of defence say of it.

    python benchmarks/planted_leaks.py [--out benchmarks/results/planted_leaks.md]

*Audit*: `audit_model` reads the ledger of the model, and the counts of the cells. *Poison test*: `poison_test` runs the whole pipeline
again with garbage in the test cells. Each sees what the other cannot; what each is expected to say stands with every leak, and the
script fails if it says anything else. `tests/evaluate/test_audit.py` runs the same leaks.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

import counterflow as cf
from counterflow.conditions.features import coexpression
from counterflow.data.ledger import Ledger
from counterflow.data.schema import setup_of
from counterflow.data.screen import read_screen
from counterflow.evaluate.baselines import BASELINES, applicable
from counterflow.evaluate.metrics import welch_t
from counterflow.fitting import fit_rule, fit_space
from counterflow.recipe import Recipe
from counterflow.spaces.base import log_normalise

TINY = {"backbone_kwargs": {"width": 16, "depth": 1}, "encoder_kwargs": {"width": 8}, "anchor": "none"}
PCA = {"space_kwargs": {"n_components": 5}}
GENES = 30


def screen(validation: bool = False) -> AnnData:
    """A declared screen of 60 genes: three pairs and some controls are test; with `validation`, another pair is for choosing."""
    simulated = cf.simulate_screen(
        n_genes=60, n_perturbations=6, n_pairs=8, cells_per_condition=20, cells_control=120, n_cell_types=1, n_batches=1, seed=1
    )
    adata, pairs = simulated.adata, [name for name in simulated.conditions if "+" in name]
    adata.obs["split"] = np.where(adata.obs["perturbation"].isin(pairs[:3]), "test", "train")
    if validation:
        adata.obs.loc[adata.obs["perturbation"] == pairs[3], "split"] = "val"
    adata.obs.loc[adata.obs_names[adata.obs["perturbation"] == "control"][::5], "split"] = "test"
    return declared(adata, "split")


def declared(adata: AnnData, split_key: str | None) -> AnnData:
    cf.CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key=split_key)
    return adata


def test_cells(adata: AnnData) -> np.ndarray:
    return (adata.obs["split"] == "test").to_numpy()


def fit(adata: AnnData, max_steps: int = 3, lr: float = 1e-3, early_stopping: bool = False, **options: object) -> cf.CounterFlow:
    """The clean pipeline."""
    patience = {"patience": 1} if early_stopping else {}
    model = cf.CounterFlow(adata, **{**TINY, **({} if "space" in options else PCA), **options})
    model.train(max_steps=max_steps, lr=lr, batch_size=64, set_size=16, early_stopping=early_stopping, progress=False, **patience)
    return model


# ---------------------------------------------------------------------------------------------------------------- leaky pipelines


def genes_of_all_cells(adata: AnnData) -> cf.CounterFlow:
    cf.choose_genes(declared(adata, None), GENES)
    return fit(declared(adata, "split"))


def de_list(adata: AnnData) -> list[str]:
    """The genes that differ most between test cells and controls."""
    cells = read_screen(adata, setup_of(adata))
    values = log_normalise(cells.counts, cells.library).toarray()
    t = welch_t(values[test_cells(adata) & ~cells.is_control], values[cells.is_control])
    return [cells.genes[i] for i in np.sort(np.argsort(-np.abs(t))[:GENES])]


def genes_of_a_de_list(adata: AnnData) -> cf.CounterFlow:
    cf.choose_genes(adata, de_list(adata), chosen_on=adata.obs_names[test_cells(adata) | (adata.obs["perturbation"] == "control")])
    return fit(adata)


def genes_of_a_secret_de_list(adata: AnnData) -> cf.CounterFlow:
    return fit(adata[:, de_list(adata)].copy())


def whole_screen(adata: AnnData):
    return read_screen(adata, setup_of(adata))


def space_of_all_cells(space: str) -> Callable[[AnnData], cf.CounterFlow]:
    def leaky(adata: AnnData) -> cf.CounterFlow:
        def everything(space, cells, seed, ledger):
            fit_space(space, whole_screen(adata), seed, ledger)

        with patch("counterflow.model.fit_space", everything):
            return fit(adata, **({"space": space} if space != "pca" else {}))

    return leaky


def vae_of_all_cells(adata: AnnData) -> cf.CounterFlow:
    import scvi

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cells = adata.copy()
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(cells)
    vae = scvi.model.SCVI(cells, n_hidden=16, n_latent=4, gene_likelihood="nb")
    vae.train(max_epochs=2, train_size=1.0, accelerator="cpu", enable_progress_bar=False, logger=False, enable_checkpointing=False)
    return fit(adata, space=vae)


def features_of_all_cells(adata: AnnData) -> cf.CounterFlow:
    cells = whole_screen(adata)
    table = coexpression(log_normalise(cells.counts, cells.library), cells.genes, n_components=8)
    table.attrs["fitted_on"] = list(cells.cells)
    return fit(adata, perturbation_features=table)


def rule_of_all_cells(adata: AnnData) -> cf.CounterFlow:
    def everything(cells, states, ledger):
        whole, model = whole_screen(adata), cf.CounterFlow(adata, **{**TINY, **PCA})
        fit_space(model.space, cells_of_training(whole), 0, Ledger())
        encoded = model.space.encode(whole.counts, whole.library)
        return fit_rule(whole, lambda rows: encoded[rows], ledger)

    with patch("counterflow.recipe.fit_rule", everything):
        return fit(adata, anchor="additive")


def cells_of_training(cells):
    return cells.rows(cells.split == "train")


def training_on_all_cells(adata: AnnData) -> cf.CounterFlow:
    return fit(declared(adata, None))


def training_on_renamed_copies(adata: AnnData) -> cf.CounterFlow:
    copies = adata[test_cells(adata)].copy()
    copies.obs_names = [f"new{i}" for i in range(copies.n_obs)]
    copies.obs["split"] = "train"
    return fit(declared(anndata.concat([adata[~test_cells(adata)], copies], uns_merge="first"), "split"))


def early_stopping_on_test_cells(adata: AnnData) -> cf.CounterFlow:
    adata.obs["watched"] = np.where(adata.obs["split"] == "train", "train", "val")
    return fit(declared(adata, "watched"), max_steps=10, early_stopping=True)


def own_genes_and_early_stopping(adata: AnnData) -> cf.CounterFlow:
    cf.choose_genes(adata, GENES)
    return fit(adata, max_steps=10, early_stopping=True)


class Guided:
    """A model with a guidance scale of its own."""

    def __init__(self, model: cf.CounterFlow, scale: float) -> None:
        self.model, self.scale = model, scale

    def predict(self, adata: AnnData, conditions: pd.DataFrame) -> AnnData:
        """With its scale."""
        return self.model.predict(adata, conditions, guidance=self.scale)

    def audit(self, adata: AnnData, subset: str = "test") -> str:
        """Of the model."""
        return self.model.audit(adata, subset)


def guidance_chosen_on(subset: str) -> Callable[[AnnData], Guided]:
    def chosen(adata: AnnData) -> Guided:
        model = fit(adata, max_steps=5, lr=0.01)
        return Guided(model, cf.choose_guidance(model, adata, (0.5, 4.0), subset=subset, n_steps=3))

    return chosen


def recipe_of_all_cells(adata: AnnData) -> cf.CounterFlow:
    trust = Recipe.trust

    def everything(self, cells, states, module, rule):
        whole = whole_screen(adata)
        encoded = self_space.encode(whole.counts, whole.library)
        return trust(self, whole, lambda rows: encoded[rows], module, rule)

    def remembered(space, cells, seed, ledger):
        nonlocal self_space
        self_space = space
        fit_space(space, cells, seed, ledger)

    self_space = None
    with patch.object(Recipe, "trust", everything), patch("counterflow.model.fit_space", remembered):
        return fit(adata, anchor="additive")


# --------------------------------------------------------------------------------------------------------------------- leaky data


def with_cells_in_two_sets(names: Callable[[str], str]) -> Callable[[], AnnData]:
    def data() -> AnnData:
        adata = screen()
        copies = adata[test_cells(adata)][:5].copy()
        copies.obs_names = [names(name) for name in copies.obs_names]
        copies.obs["split"] = "train"
        return declared(anndata.concat([adata, copies], uns_merge="first"), "split")

    return data


def screen_with_validation() -> AnnData:
    return screen(validation=True)


def with_an_unseen_gene() -> AnnData:
    """A perturbation that is held out in every condition that contains it."""
    adata = screen()
    held_out = [name for name in adata.obs["perturbation"].unique() if "+" not in name and name != "control"][0]
    adata.obs["split"] = np.where([held_out in name.split("+") for name in adata.obs["perturbation"]], "test", "train")
    return adata


def features_without_the_unseen_gene(adata: AnnData) -> cf.CounterFlow:
    trained = adata.obs["perturbation"][~test_cells(adata)].unique()
    parts = sorted({part for name in trained for part in name.split("+")} - {"control"})
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(len(parts), 4)), index=parts)
    table.attrs["fitted_on"] = []
    return fit(adata, perturbation_features=table)


# ------------------------------------------------------------------------------------------------------------------------ the list


@dataclass(frozen=True)
class Leak:
    """A planted leak: the pipeline, the data it is run on, and who is expected to find it."""

    name: str
    planted: str
    fit: Callable[[AnnData], object]
    audit: str  # words that the message of the audit holds; "" where it has to pass
    poison: str  # the same for the poison test
    data: Callable[[], AnnData] = screen
    why: str = ""  # why one of them cannot see it


CANNOT_KNOW = "the ledger knows what it is told; it says `not known: genes`"
COPIES = "only the copy in the test set is spoilt; the one in training stays as it is"
LEAKS = (
    Leak(
        "gene selection",
        f"the {GENES} most variable genes of all cells",
        genes_of_all_cells,
        "gene selection saw",
        "predicted genes are others",
    ),
    Leak(
        "DE gene list",
        f"the {GENES} genes that differ most between test cells and controls, with `choose_genes(chosen_on=...)`",
        genes_of_a_de_list,
        "gene selection saw",
        "predicted genes are others",
    ),
    Leak(
        "DE gene list, kept secret",
        "the same genes, without a word",
        genes_of_a_secret_de_list,
        "",
        "predicted genes are others",
        why=f"Audit: {CANNOT_KNOW}.",
    ),
    Leak("PCA", "components of all cells", space_of_all_cells("pca"), "the space (PCA, VAE, scaler) saw", "the space (PCA, VAE, scaler)"),
    Leak(
        "scaler",
        "mean and spread of each gene over all cells (raw space)",
        space_of_all_cells("raw"),
        "the space (PCA, VAE, scaler) saw",
        "the space (PCA, VAE, scaler)",
    ),
    Leak("VAE", "a ready scVI model that was trained on all cells", vae_of_all_cells, "the handed-in VAE saw", "the space (PCA, VAE"),
    Leak(
        "features",
        "coexpression of all cells, handed in with `attrs['fitted_on']`",
        features_of_all_cells,
        "perturbation features saw",
        "perturbation features changed",
    ),
    Leak("additive rule", "effects measured on all cells", rule_of_all_cells, "the additive rule saw", "the additive rule changed"),
    Leak("training", "no split declared in the fit", training_on_all_cells, "training of the flow", "training of the flow changed"),
    Leak(
        "training on renamed copies",
        "the test cells are appended to training under other names",
        training_on_renamed_copies,
        "under another name",
        "training of the flow changed",
    ),
    Leak(
        "early stopping",
        "the test cells are watched as validation cells",
        early_stopping_on_test_cells,
        "the validation loss (early stopping) saw",
        "training of the flow changed",
        data=screen_with_validation,
    ),
    Leak(
        "guidance",
        "the scale with the smallest error on test cells",
        guidance_chosen_on("test"),
        "the choice of the guidance scale saw",
        "predicted X differs",
        data=screen_with_validation,
    ),
    Leak(
        "recipe (calibration)",
        "how far the flow is trusted beyond the rule is learnt on all cells",
        recipe_of_all_cells,
        "how far the flow is trusted beyond the rule saw",
        "how far the flow is trusted beyond the rule changed",
    ),
    Leak(
        "a cell in two sets",
        "five test cells are in training as well",
        fit,
        "sit in two sets",
        "",
        data=with_cells_in_two_sets(lambda name: name),
        why=f"Poison test: {COPIES}.",
    ),
    Leak(
        "duplicate cells",
        "five test cells are in training under other names",
        fit,
        "sit in two sets",
        "",
        data=with_cells_in_two_sets(lambda name: f"copy of {name}"),
        why=f"Poison test: {COPIES}.",
    ),
    Leak(
        "unseen entity without features",
        "a held-out gene has no row in perturbation_features",
        features_without_the_unseen_gene,
        "without features",
        "neither seen in training nor have features",
        data=with_an_unseen_gene,
        why="Poison test: it comes to no result, because `predict` refuses the condition.",
    ),
)
CLEAN = (
    Leak("clean: pca and additive rule", "", lambda adata: fit(adata, anchor="additive"), "", ""),
    Leak("clean: raw", "", lambda adata: fit(adata, space="raw"), "", ""),
    Leak("clean: own genes, early stopping", "", own_genes_and_early_stopping, "", "", data=screen_with_validation),
    Leak("clean: guidance chosen on validation", "", guidance_chosen_on("val"), "", "", data=screen_with_validation),
)


HEAD = [
    "# Planted leaks",
    "",
    "Written by `python benchmarks/planted_leaks.py`. FAILS is what should happen: the leak was found.",
    "*Audit*: `audit_model` reads the ledger of the fitted model and the counts of the cells. *Poison test*: `poison_test` runs",
    "the pipeline again with garbage in the test cells; predictions from the same controls must agree to the bit.",
    "",
    "| leak | what was planted | audit | poison test |",
    "|---|---|---|---|",
]


def say(check: Callable[[], str]) -> tuple[bool, str]:
    """Whether a check passes, and what it says."""
    try:
        return True, check()
    except cf.CounterflowError as error:
        return False, str(error)


def run(leak: Leak) -> tuple[tuple[bool, str], tuple[bool, str]]:
    """What the audit and the poison test say."""
    adata = leak.data()
    audited = say(lambda: leak.fit(adata.copy()).audit(adata))
    return audited, say(lambda: cf.poison_test(leak.fit, adata, conditions=asked(adata)))


def asked(adata: AnnData) -> pd.DataFrame:
    """Two test conditions and two of training."""
    names = [adata.obs["perturbation"][cells & (adata.obs["perturbation"] != "control")].unique()[:2] for cells in both(adata)]
    return pd.DataFrame({"perturbation": np.concatenate(names)})


def both(adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
    return test_cells(adata), (adata.obs["split"] == "train").to_numpy()


def block(leak: Leak, audited: tuple[bool, str], poisoned: tuple[bool, str]) -> list[str]:
    """The lines of one leak."""
    lines = [f"## {leak.name}", "", f"Planted: {leak.planted}." if leak.planted else "Nothing is planted.", ""]
    for who, (passed, text) in (("Audit", audited), ("Poison test", poisoned)):
        lines += [f"- **{who}: {'passes' if passed else 'FAILS'}.** {text}"]
    return [*lines, *(["", leak.why] if leak.why else []), ""]


def as_expected(leak: Leak, audited: tuple[bool, str], poisoned: tuple[bool, str]) -> bool:
    """Whether both said what stands with the leak."""
    pairs = ((leak.audit, audited), (leak.poison, poisoned))
    return all(passed == (not words) and words in text for words, (passed, text) in pairs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "planted_leaks.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    lines, odd, rows = [], [], []
    for leak in (*LEAKS, *CLEAN):
        audited, poisoned = run(leak)
        lines += block(leak, audited, poisoned)
        print("\n".join(block(leak, audited, poisoned)), flush=True)
        rows.append(
            f"| {leak.name} | {leak.planted or '-'} | " + " | ".join("passes" if p else "FAILS" for p, _ in (audited, poisoned)) + " |"
        )
        odd += [] if as_expected(leak, audited, poisoned) else [leak.name]
    adata = screen()
    names = applicable(adata)
    said = [say(lambda name=name: cf.poison_test(lambda a: trained(name, a), adata, conditions=asked(adata))) for name in names]
    leaky = [name for name, (passed, _) in zip(names, said, strict=True) if not passed]
    verdict = f"FAILS for {', '.join(leaky)}" if leaky else "all pass"
    baselines = ["## baselines", "", f"Poison test of {', '.join(names)}: {verdict}.", ""]
    print("\n".join(baselines))
    odd += ["baselines"] if leaky else []
    options.out.write_text("\n".join([*HEAD, *rows, "", *lines, *baselines]), encoding="utf-8")
    if odd:
        print(f"NOT as expected: {', '.join(odd)}", file=sys.stderr)
    return len(odd)


def trained(name: str, adata: AnnData):
    baseline = BASELINES[name]()
    baseline.train(adata)
    return baseline


if __name__ == "__main__":
    sys.exit(main())
