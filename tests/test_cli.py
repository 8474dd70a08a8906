"""The command line: every verb through `main`, and once through a real process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml

from counterflow.cli import VERBS, main
from counterflow.cli.terminal import Terminal
from counterflow.data.simulate import SMALL, simulate_screen

SETUP = ("--setup.perturbation_key", "perturbation", "--setup.control", "control")
SHORT = ("--train.max_steps", "4", "--train.batch_size", "32", "--train.set_size", "16", "--model.space_kwargs.n_components", "8")
SPLIT = ("--split", "unseen_combination")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}


class Scores:
    """Stands for a `counterflow.evaluate.table.Table`."""

    models = ("mlp/pca",)

    def __init__(self) -> None:
        self.saved: list[str] = []

    def summary(self) -> pd.DataFrame:
        methods = ["mlp/pca", "control", "mean", "additive", "split_half"]
        rows = [(metric, method, 0.5, 3, 0.25) for metric in ("pearson_delta", "mse") for method in methods]
        return pd.DataFrame(rows, columns=["metric", "method", "value", "n", "S"])

    def verdict(self, method: str) -> str:
        return f"{method} ties."

    def save(self, directory) -> None:
        self.saved.append(str(directory))


DOUBLE_SCORES = {"overall": "", "where": "", "dots": "", "sure": [], "sure_level": "", "sure_plot": ""} | dict.fromkeys(
    ("questions", "cards", "header", "rows", "metrics", "self_tests"), ()
)


@pytest.fixture
def calls(monkeypatch):
    """Scoring and comparing are replaced by doubles that note how they were called."""
    made: dict[str, list] = {"evaluate": [], "compare": []}

    def note(name):
        def double(*arguments, **options):
            made[name].append((arguments, options))
            return Scores()

        return double

    for name in ("evaluate", "compare"):
        module = types.ModuleType(name)
        setattr(module, name, note(name))
        module.WithMean = lambda model: model  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "counterflow.evaluate.evaluate" if name == "evaluate" else "counterflow.compare", module)
    monkeypatch.setattr("counterflow.fit_report.scores", lambda table: pytest.fail("looked at") if table is None else DOUBLE_SCORES)
    monkeypatch.setattr("counterflow.evaluate.report.write_report", lambda table, file, title: made.setdefault("report", []).append(file))
    return made


@pytest.fixture(scope="module")
def screen(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "screen.h5ad"
    simulate_screen(**SMALL, seed=1).adata.write_h5ad(path)
    return str(path)


@pytest.fixture(scope="module")
def fitted(screen, tmp_path_factory) -> Path:
    """A run with a split, made by the command line."""
    run = tmp_path_factory.mktemp("runs") / "first"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("counterflow.cli.fit._scores", lambda *_: None)
        assert main(["fit", screen, *SETUP, "--setup.match_keys", "cell_type", *SPLIT, *SHORT, "--out", str(run), "--quiet"]) == 0
    return run


def test_help_and_import_are_fast_and_light():
    code = (
        "import sys, time; t = time.perf_counter(); import counterflow; from counterflow.cli import main; main(['--help']);"
        "heavy = {'torch', 'scanpy', 'scvi', 'lightning', 'pandas', 'numpy', 'anndata', 'jsonargparse'} & set(sys.modules);"
        "sys.exit(f'{heavy} {time.perf_counter() - t}' if heavy or time.perf_counter() - t > 0.5 else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert "counterflow fit screen.h5ad" in done.stdout


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_a_reader_that_went_away_is_no_fault(word):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "counterflow.cli", word], stdout=writing, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"counterflow {verb}" in text and "example:" in text and "--json" in text


def test_an_unknown_verb_names_the_near_one(capsys):
    assert main(["generat"]) == 2
    assert "'generate'" in capsys.readouterr().err


def test_flags_come_from_the_signatures():
    import inspect

    from counterflow.cli import fit
    from counterflow.model import CounterFlow

    known = fit.parser().types
    for section, call in (("setup", CounterFlow.setup_anndata), ("model", CounterFlow.__init__), ("train", CounterFlow.train)):
        hidden = {"self", "adata", "trainer_kwargs", "run_dir", "resume_from", "progress", "force_data"}
        names = set(inspect.signature(call).parameters) - hidden
        assert {f"{section}.{name}" for name in names} <= set(known)


def test_fit_writes_the_whole_run(fitted):
    assert {"config.yaml", "run.json", "split.json", "metrics.csv", "checkpoints", "model", "report.html"} <= {
        path.name for path in fitted.iterdir()
    }
    facts = json.loads((fitted / "run.json").read_text())
    assert facts["seeds"] == {"model": 0, "split": 0} and facts["data"]["cells"] == 420 and facts["versions"]["torch"]
    assert yaml.safe_load((fitted / "config.yaml").read_text())["setup"]["match_keys"] == "cell_type"


def test_the_resolved_config_fits_the_same_model(fitted, tmp_path, calls):
    assert main(["fit", "--config", str(fitted / "config.yaml"), "--out", str(tmp_path / "again"), "--quiet"]) == 0
    assert (fitted / "model" / "weights.safetensors").read_bytes() == (tmp_path / "again" / "model" / "weights.safetensors").read_bytes()
    facts = [json.loads((run / "run.json").read_text()) for run in (fitted, tmp_path / "again")]
    assert facts[0]["data"]["sha256"] == facts[1]["data"]["sha256"] and facts[0]["split_hash"] == facts[1]["split_hash"]


def test_effect_prints_the_largest_ones_and_writes_all(fitted, tmp_path, capsys):
    name = json.loads((fitted / "model" / "model.json").read_text())["training"]["conditions"][0]
    out = tmp_path / "effects.csv"
    assert main(["effect", str(fitted), "--condition", name, "--top", "2", "--out", str(out)]) == 0
    said, table = capsys.readouterr().out, pd.read_csv(out)
    assert set(table["cell_type"]) == {"type0", "type1"} and len(table) == 2 * 60 and table["lo"].notna().all()
    largest = table.loc[table["effect"].abs().groupby(table["cell_type"]).idxmax()]
    assert all(gene in said for gene in largest["gene"]) and said.count("intervals leave out zero") == 2
    assert main(["effect", str(fitted), "--condition", name, "--json", "--interval", "0.5", "--covariates.cell_type", "type1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == 60 and {row["cell_type"] for row in answer["largest"]} == {"type1"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--condition", "G0x"], "neither seen in training"),
        (["--condition", "control", "--interval", "90"], "between 0 and 1"),
        ([], "--condition must be given"),
        (["--condition", "control", "--out", "effects.xlsx"], "ends in .csv"),
    ],
)
def test_effect_refuses_what_it_cannot_answer(fitted, words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["effect", str(fitted), *words]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_fit_with_a_split_prints_the_scores_beside_the_simple_rules(screen, tmp_path, calls, capsys):
    assert main(["fit", screen, *SETUP, *SPLIT, *SHORT, "--out", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("mlp/pca", "control", "mean", "additive", "pearson_delta", "S"))
    ((predictors, adata), options) = calls["evaluate"][0]
    assert list(predictors) == ["mlp/pca"] and options["subset"] == "test"
    assert set(adata.obs["counterflow_split"]) == {"train", "test"}  # nobody looks at validation conditions


def test_early_stopping_has_validation_conditions(screen, tmp_path, calls):
    assert main(["fit", screen, *SETUP, *SPLIT, *SHORT, "--train.early_stopping", "true", "--out", str(tmp_path / "run")]) == 0
    ((_, adata), _) = calls["evaluate"][0]
    assert set(adata.obs["counterflow_split"]) == {"train", "val", "test"}


def test_scores_are_real_and_the_same_from_fit_and_evaluate(screen, tmp_path, capsys):
    """No doubles: the held-out conditions are scored, those with unknown parts too."""
    words = ["fit", screen, *SETUP, "--split", "unseen_perturbation", *SHORT, "--model.anchor", "none", "--out", str(tmp_path / "run")]
    assert main([*words, "--json"]) == 0
    of_fit = {(row["metric"], row["method"]): row["value"] for row in json.loads(capsys.readouterr().out)["evaluation"]}
    assert {"mlp/pca", "control", "mean", "additive"} <= {method for _, method in of_fit}
    assert main(["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "scores"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    of_evaluate = {(row["metric"], row["method"]): row["value"] for row in result["summary"]}
    assert of_fit.items() <= of_evaluate.items() and result["verdict"]
    assert (tmp_path / "scores" / "table.csv").is_file()


def test_fit_without_a_split_says_so_and_scores_nothing(screen, tmp_path, calls, capsys):
    assert main(["fit", screen, *SETUP, *SHORT, "--out", str(tmp_path / "run")]) == 0
    assert "no --split" in capsys.readouterr().out
    assert not calls["evaluate"] and not (tmp_path / "run" / "split.json").exists()


def test_a_split_file_is_used_as_it_is(fitted, screen, tmp_path, calls):
    run = tmp_path / "run"
    assert main(["fit", screen, *SETUP, "--split", str(fitted / "split.json"), *SHORT, "--out", str(run), "--quiet"]) == 0
    assert (run / "split.json").read_text() == (fitted / "split.json").read_text()


def test_held_out_chooses_the_level(screen, tmp_path, calls):
    run = tmp_path / "run"
    words = ["--setup.match_keys", "[cell_type]", "--split", "unseen_context", "--held_out", "type1"]
    assert main(["fit", screen, *SETUP, *words, *SHORT, "--out", str(run), "--quiet"]) == 0
    split = json.loads((run / "split.json").read_text())
    assert {name.split(" | ")[1] for name, where in split["assignment"].items() if where == "test"} == {"type1"}


def test_a_second_run_into_the_same_directory_is_refused(fitted, screen, capsys):
    before = (fitted / "model" / "weights.safetensors").read_bytes()
    assert main(["fit", screen, *SETUP, *SHORT, "--out", str(fitted)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["fit", screen, *SETUP, *SHORT, "--out", str(fitted), "--resume"]) == 0  # finished: nothing to do
    assert (fitted / "model" / "weights.safetensors").read_bytes() == before


def test_a_directory_with_other_things_is_never_overwritten(screen, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert main(["fit", screen, *SETUP, *SHORT, "--out", str(tmp_path), "--overwrite"]) == 2
    assert "not a run" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_overwrite_replaces_the_run(screen, tmp_path, calls):
    words = ["fit", screen, *SETUP, *SHORT, "--out", str(tmp_path / "run"), "--quiet"]
    assert main([*words, *SPLIT]) == 0
    assert main([*words, "--overwrite"]) == 0
    assert not (tmp_path / "run" / "split.json").exists()


def test_an_option_that_lightning_refuses_leaves_no_run(screen, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", screen, *SETUP, *SHORT, "--train.accelerator", "gpuu", "--out", str(run)]) == 2
    assert "accelerator" in capsys.readouterr().err and not run.exists()
    assert main(["fit", screen, *SETUP, *SHORT, "--train.trainer_kwargs.gradient_clip", "1", "--out", str(run)]) == 2
    assert "'gradient_clip_val'" in capsys.readouterr().err and not run.exists()


def test_generate_writes_counterfactuals_of_the_kept_controls(fitted, tmp_path, capsys):
    out = tmp_path / "new" / "cells.h5ad"
    genes = json.loads((fitted / "model" / "model.json").read_text())["vocabulary"]["seen"]
    pair = f"{genes[0]}+{genes[1]}"
    assert main(["generate", str(fitted), "--condition", pair, "--condition", genes[0], "--n_cells", "5", "--out", str(out)]) == 0
    cells = anndata.read_h5ad(out)
    assert cells.n_obs == 10 and set(cells.obs["condition"]) == {pair, genes[0]} and set(cells.layers) == {"counts", "mean"}
    assert set(cells.obs["support"]) <= {"seen", "components-seen"}
    assert "components-seen" in capsys.readouterr().out or "seen" in set(cells.obs["support"])
    assert [path.name for path in out.parent.iterdir()] == ["cells.h5ad"]


def test_generate_is_the_same_twice_and_another_for_another_seed(fitted, tmp_path):
    seen = json.loads((fitted / "model" / "model.json").read_text())["vocabulary"]["seen"][0]
    counts = []
    for i, seed in enumerate(("1", "1", "2")):
        out = tmp_path / f"{i}.h5ad"
        assert main(["generate", str(fitted), "--condition", seen, "--seed", seed, "--out", str(out), "--quiet"]) == 0
        counts.append(anndata.read_h5ad(out).layers["counts"].toarray())
    assert np.array_equal(counts[0], counts[1]) and not np.array_equal(counts[0], counts[2])


def test_generate_from_controls_of_a_file_keeps_their_names(fitted, screen, tmp_path):
    seen = json.loads((fitted / "model" / "model.json").read_text())["vocabulary"]["seen"][0]
    out = tmp_path / "cells.h5ad"
    assert main(["generate", str(fitted), "--condition", seen, "--controls", screen, "--out", str(out), "--quiet"]) == 0
    data = anndata.read_h5ad(screen)
    controls = data.obs_names[data.obs["perturbation"] == "control"]
    assert sorted(anndata.read_h5ad(out).obs["source_cell"]) == sorted(controls)


def test_generate_new_cells_in_one_cell_type(fitted, tmp_path, capsys):
    seen = json.loads((fitted / "model" / "model.json").read_text())["vocabulary"]["seen"][0]
    out = tmp_path / "cells.h5ad"
    words = ["generate", str(fitted), "--condition", seen, "--new", "--n_cells", "6", "--covariates.cell_type", "type0", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cells"] == 6
    assert set(anndata.read_h5ad(out).obs["cell_type"]) == {"type0"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--condition", "control", "--dose", "1"], "without doses"),
        (["--condition", "control", "--new"], "--n_cells"),
        (["--condition", "control", "--covariates.cell_type", "type9"], "'type0'"),
        (["--condition", "control", "--n_step", "3"], "n_steps"),
        ([], "--condition"),
    ],
)
def test_generate_refuses(fitted, tmp_path, capsys, words, said):
    out = tmp_path / "new" / "cells.h5ad"
    assert main(["generate", str(fitted), *words, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not out.parent.exists()


def test_an_unknown_perturbation_names_its_near_matches(fitted, tmp_path, capsys):
    seen = json.loads((fitted / "model" / "model.json").read_text())["vocabulary"]["seen"][0]
    assert main(["generate", str(fitted), "--condition", f"{seen}x", "--out", str(tmp_path / "new" / "cells.h5ad")]) == 2
    assert f"did you mean '{seen}'" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_generating_from_a_saved_pca_model_imports_no_lightning(fitted, tmp_path):
    code = (
        "import sys; from counterflow.cli import main;"
        f"main(['generate', {str(fitted)!r}, '--condition', 'control', '--n_cells', '3', '--out', {str(tmp_path / 'c.h5ad')!r}]);"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'lightning', 'scvi', 'pytorch_lightning', 'scanpy', 'ot'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_evaluate_restores_data_and_split(fitted, tmp_path, calls, capsys):
    assert main(["evaluate", str(fitted), "--subset", "val", "--out", str(tmp_path / "scores"), "--json"]) == 0
    ((predictors, adata), options) = calls["evaluate"][0]
    split = json.loads((fitted / "split.json").read_text())
    test = {name for name, where in split["assignment"].items() if where == "test"}
    assert options["subset"] == "val" and list(predictors) == ["mlp/pca"]
    assert set(adata.obs["perturbation"][adata.obs["counterflow_split"] == "test"]) - {"control"} == test
    assert json.loads(capsys.readouterr().out)["verdict"] == "mlp/pca ties."


def test_evaluate_exports_for_scorers_written_by_others(fitted, tmp_path, calls, capsys):
    from anndata import read_h5ad

    assert main(["evaluate", str(fitted), "--out", str(tmp_path / "scores"), "--cell_eval", "counts", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["cell_eval"]
    assert len(files) == 2 and all(set(of_context) == {"real", "mlp/pca"} for of_context in files.values())
    for of_context in files.values():
        sides = [read_h5ad(path) for path in of_context.values()]
        assert set(sides[0].obs["target"]) == set(sides[1].obs["target"]) > {"non-targeting"}
        assert all(np.array_equal(side.X.data, np.rint(side.X.data)) for side in sides)
    assert main(["evaluate", str(fitted), "--out", str(tmp_path / "scores"), "--cell_eval", "log"]) == 2
    assert "'lognorm', 'counts'" in capsys.readouterr().err


def test_evaluate_says_when_nothing_was_held_out(screen, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", screen, *SETUP, *SHORT, "--out", str(run), "--quiet"]) == 0
    assert main(["evaluate", str(run), "--out", str(tmp_path / "scores")]) == 2
    assert "--split" in capsys.readouterr().err


def test_compare_takes_the_suggested_split_and_says_so(screen, tmp_path, calls, capsys):
    words = ["--models", "mlp/pca, dit/raw", "--seeds", "2", "--budget.steps", "7", "--model.anchor", "none"]
    assert main(["compare", screen, *SETUP, *words, "--out", str(tmp_path / "c")]) == 0
    assert "unseen_combination" in capsys.readouterr().out
    ((adata, models), options) = calls["compare"][0]
    assert models == ["mlp/pca", "dit/raw"] and options["seeds"] == 2 and options["budget_steps"] == 7
    assert options["model_options"] == {"anchor": "none"} and options["train_options"] == {}


def test_info_reads_the_manifest_without_torch(fitted):
    code = f"import sys; from counterflow.cli import main; main(['info', {str(fitted)!r}, '--json']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["backbone"] == "mlp" and facts["control cells kept"] > 0 and len(facts["genes"]) == 60
    n = facts["trained on cells"]
    assert facts["learned from cells"].startswith("genes not known, features ")
    assert f"space {n}, rule {n}, weights {n}, recipe {n}" in facts["learned from cells"]


def test_json_is_all_there_is_on_stdout_and_quiet_prints_nothing(screen, tmp_path, calls, capsys):
    assert main(["fit", screen, *SETUP, *SPLIT, *SHORT, "--out", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluation"][0]["metric"] == "pearson_delta"
    assert main(["fit", screen, *SETUP, *SPLIT, *SHORT, "--out", str(tmp_path / "b"), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_our_own_fault_is_code_1_with_a_short_message(fitted, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr("counterflow.checkpoint.read_manifest", broken)
    assert main(["info", str(fitted)]) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError: somewhere deep" in error and "--debug" in error and "Traceback" not in error
    assert main(["info", str(fitted), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def stop_after_checkpoints(run: Path, signum: int, n: int = 3) -> None:
    """Send ourselves a signal once training has left `n` states to go on from, one after the other."""
    seen: set[int] = set()
    deadline = time.monotonic() + 60
    while len(seen) < n and time.monotonic() < deadline:
        time.sleep(0.002)
        if (run / "checkpoints" / "last.ckpt").exists():
            seen.add((run / "checkpoints" / "last.ckpt").stat().st_mtime_ns)
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_says_how_to_go_on_and_does(screen, tmp_path, calls, capsys, signum, code):
    run = tmp_path / "run"
    before = signal.getsignal(signum)
    threading.Thread(target=stop_after_checkpoints, args=(run, signum)).start()
    assert main(["fit", screen, *SETUP, *SHORT, "--train.max_steps", "200", "--out", str(run)]) == code
    error = capsys.readouterr().err
    assert f"counterflow fit --config {run / 'config.yaml'} --resume" in error and "Traceback" not in error
    assert not (run / "model").exists() and signal.getsignal(signum) == before
    logged = pd.read_csv(run / "metrics.csv")["step"].max()
    assert main(["fit", "--config", str(run / "config.yaml"), "--resume", "--quiet"]) == 0
    steps = pd.read_csv(run / "metrics.csv")["step"]
    assert logged < 199 and steps.is_monotonic_increasing and steps.iloc[-1] == 199 and steps.iloc[0] <= logged
    assert json.loads((run / "model" / "model.json").read_text())["training"]["history"][0]["step"] == 200


def test_resume_refuses_other_options_and_other_data(screen, tmp_path, calls, capsys):
    run = tmp_path / "run"
    assert main(["fit", screen, *SETUP, *SHORT, "--out", str(run), "--quiet"]) == 0
    shutil.rmtree(run / "model")  # as if it had been interrupted
    assert main(["fit", "--config", str(run / "config.yaml"), "--resume", "--train.lr", "0.5"]) == 2
    assert "train.lr" in capsys.readouterr().err
    data = anndata.read_h5ad(screen)
    data.X[0, 0] += 1
    other = tmp_path / "other.h5ad"
    data.write_h5ad(other)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"data": {"path": str(other)}}))
    before = json.loads((run / "run.json").read_text())["data"]
    assert main(["fit", "--config", str(run / "config.yaml"), "--resume"]) == 2
    assert "data changed" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["data"] == before
    assert main(["fit", "--config", str(run / "config.yaml"), "--resume", "--force-data", "--quiet"]) == 0
    facts = json.loads((run / "run.json").read_text())
    assert facts["data_before"] == [before] and facts["data"]["sha256"] != before["sha256"]


def test_demo_calls_the_demo(monkeypatch, tmp_path, capsys):
    demo = types.ModuleType("demo")
    demo.run = lambda out, progress: {"out": str(out), "progress": progress}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "counterflow.demo", demo)
    monkeypatch.setattr("counterflow.demo", demo, raising=False)
    assert main(["demo", "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path), "progress": False}


def test_cells_without_a_label_are_left_out_everywhere(screen, tmp_path, capsys):
    data = anndata.read_h5ad(screen)
    labels = data.obs["perturbation"].astype(object)
    labels.iloc[:9] = None
    data.obs["perturbation"] = labels
    file, run = tmp_path / "some.h5ad", tmp_path / "run"
    data.write_h5ad(file)
    short = [*SHORT, "--setup.drop-missing", "true", "--split", "unseen_combination"]
    assert main(["fit", str(file), *SETUP, *short, "--out", str(run), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    assert re.search(r"cells left out +9", capsys.readouterr().out)
    assert main(["evaluate", str(run), "--out", str(tmp_path / "scores")]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("warning: 9 of") == 1 and "S, on" in printed.out
    assert main(["evaluate", str(run), "--out", str(tmp_path / "scores"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_table_in_a_pipe_has_whole_numbers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    Terminal().table(
        ["gene", "effect", "what a simple rule says of it"], [["G" * 30, 1.234, "a long remark that is wider than the pipe is"]]
    )
    out = capsys.readouterr().out
    assert "…" not in out and "1.234" in out and "wider than the pipe is" in out
