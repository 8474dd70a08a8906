import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.data.split_file import Keys, Split, data_hash
from counterflow.data.splits import SPLITS, audit, build_split, folds, strata
from counterflow.errors import ConfigError, DataError

GENES = [f"g{i}" for i in range(12)]
PAIRS = [f"g{i}+g{j}" for i in range(5) for j in range(i + 1, 5)] + ["x+y", "x+g7", "g7+g7"]
KEYS = Keys("perturbation", "control", context_key="cell_type", dose_key="dose", time_key="time")


def make_obs(n_control=300, seed=0):
    rng = np.random.default_rng(seed)
    rows = [("control", cell_type, 0.0, 0.0) for cell_type in rng.choice(list("KLMN"), n_control)]
    rows += [(label, cell_type, 1.0, 6.0) for label in GENES + PAIRS for cell_type in "KLMN" for _ in range(3)]
    rows += [(drug, cell_type, dose, 6.0) for drug in ("d1", "d2") for cell_type in "KLMN" for dose in (0.1, 1.0, 10.0) for _ in range(2)]
    rows += [("g0", cell_type, 1.0, time) for cell_type in "KLMN" for time in (1.0, 3.0)]
    obs = pd.DataFrame(rows, columns=["perturbation", "cell_type", "dose", "time"])
    obs = obs.iloc[rng.permutation(len(obs))]
    obs.index = [f"cell{i}" for i in range(len(obs))]
    return obs


@pytest.fixture(scope="module")
def obs():
    return make_obs()


def in_set(obs, labels, where):
    return obs[(labels == where) & (obs["perturbation"] != "control")]


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_every_split(name, obs):
    split = build_split(name, obs, KEYS, seed=1)
    labels = split.labels(obs)
    assert labels.shape == (len(obs),) and set(labels) == {"train", "val", "test"}
    audit(name, obs, KEYS, labels)
    # the same again, another with another seed, and independent of the order of the cells
    assert build_split(name, obs, KEYS, seed=1) == split
    shuffled = obs.sample(frac=1.0, random_state=0)
    if name != "random":
        assert build_split(name, shuffled, KEYS, seed=1).assignment == split.assignment
    assert pd.Series(split.labels(shuffled), shuffled.index).loc[obs.index].tolist() == labels.tolist()
    if name not in ("unseen_dose", "unseen_time"):
        assert any(build_split(name, obs, KEYS, seed=seed).assignment != split.assignment for seed in (2, 3, 4))


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_json_round_trip(name, obs, tmp_path):
    split = build_split(name, obs, Keys("perturbation", "control", context_key=["cell_type"], dose_key="dose", time_key="time"))
    split.save(tmp_path / "split.json")
    again = Split.load(tmp_path / "split.json")
    assert again == split
    assert again.labels(obs).tolist() == split.labels(obs).tolist()
    again.verify(obs)


def test_unseen_perturbation(obs):
    split = build_split("unseen_perturbation", obs, KEYS, test_fraction=0.3)
    labels = split.labels(obs)
    parts_of = lambda cells: {part for label in cells["perturbation"].unique() for part in label.split("+")}  # noqa: E731
    trained = parts_of(in_set(obs, labels, "train"))
    held_out = {part for label in GENES + ["d1", "d2", "x", "y"] for part in [label]} - trained
    assert 5 <= len(held_out) <= 7  # 30 % and 10 % of 16
    for where in ("test", "val"):
        for label in in_set(obs, labels, where)["perturbation"].unique():
            assert set(label.split("+")) & held_out


def test_unseen_combination_keeps_singles(obs):
    split = build_split("unseen_combination", obs, KEYS, val_fraction=0.0)
    labels = split.labels(obs)
    assert set(GENES) <= set(in_set(obs, labels, "train")["perturbation"])
    tested = set(in_set(obs, labels, "test")["perturbation"])
    assert tested <= set(PAIRS) and len(tested) == round(0.5 * len(PAIRS))
    assert not tested & set(in_set(obs, labels, "train")["perturbation"])


def test_strata():
    labels = ["control", "A", "B", "A+B", "A+X", "X+Y", "V+W"]
    obs = pd.DataFrame({"p": labels})
    keys = Keys("p", "control")
    sets = {"A": "train", "B": "train", "A+B": "test", "A+X": "test", "X+Y": "train", "V+W": "val"}
    split = Split("unseen_combination", 0, keys, ("perturbation",), sets, data_hash(obs, keys))
    assert strata(split, obs) == {"A+B": "combo_seen2", "A+X": "combo_seen2", "V+W": "combo_seen0"}
    split = Split("unseen_combination", 0, keys, ("perturbation",), {**sets, "X+Y": "test", "B": "test"}, data_hash(obs, keys))
    assert strata(split, obs) == {"A+B": "combo_seen1", "A+X": "combo_seen1", "X+Y": "combo_seen0", "V+W": "combo_seen0", "B": "single"}


def test_unseen_context(obs):
    split = build_split("unseen_context", obs, KEYS, held_out="L")
    labels = split.labels(obs)
    assert set(in_set(obs, labels, "test")["cell_type"]) == {"L"}
    assert "L" not in set(in_set(obs, labels, "train")["cell_type"]) | set(in_set(obs, labels, "val")["cell_type"])
    assert len(set(in_set(obs, labels, "val")["cell_type"])) == 1  # four contexts: validation is a whole one
    control = (obs["perturbation"] == "control").to_numpy()
    assert "L" in set(obs["cell_type"][control & (labels == "train")])


def test_unseen_context_with_two_contexts(obs):
    few = obs[obs["cell_type"].isin(["K", "L"])]
    labels = build_split("unseen_context", few, KEYS, held_out="L").labels(few)
    assert set(in_set(few, labels, "val")["cell_type"]) == {"K"} == set(in_set(few, labels, "train")["cell_type"])


def test_joint_context(obs):
    keys = Keys("perturbation", "control", context_key=("cell_type", "batch"))
    two = obs.assign(batch=np.where(np.arange(len(obs)) % 2, "b1", "b2"))
    labels = build_split("unseen_context", two, keys, held_out="K | b1").labels(two)
    tested = in_set(two, labels, "test")
    assert set(tested["cell_type"]) == {"K"} and set(tested["batch"]) == {"b1"}


@pytest.mark.parametrize(("level", "expected"), [("middle", 1.0), ("last", 10.0), (0.1, 0.1), ("10", 10.0)])
def test_unseen_dose_spares_perturbations_with_one_dose(obs, level, expected):
    labels = build_split("unseen_dose", obs, KEYS, level=level).labels(obs)
    tested = in_set(obs, labels, "test")
    assert set(tested["dose"]) == {expected} and set(tested["perturbation"]) == {"d1", "d2"}
    left = in_set(obs, labels, "train")
    assert set(GENES) <= set(left["perturbation"])
    assert expected not in set(left["dose"][left["perturbation"].isin(["d1", "d2"])])


def test_unseen_time(obs):
    labels = build_split("unseen_time", obs, KEYS, val_fraction=0.0).labels(obs)
    tested = in_set(obs, labels, "test")
    assert set(tested["perturbation"]) == {"g0"} and set(tested["time"]) == {3.0}


def test_two_times_after_the_control_are_enough():
    obs = pd.DataFrame({"p": ["control", "A", "A"], "t": [0, 1, 3]})
    keys = Keys("p", "control", time_key="t")
    assert build_split("unseen_time", obs, keys).labels(obs).tolist() == ["train", "test", "train"]
    assert build_split("unseen_time", obs, keys, level="last").labels(obs).tolist() == ["train", "train", "test"]


def test_lopo_and_its_folds(obs):
    splits = folds("lopo", obs, KEYS)
    assert [split.arguments["held_out"] for split in splits] == sorted([*GENES, "d1", "d2", "x", "y"])
    for split in splits[:4]:
        labels, gene = split.labels(obs), split.arguments["held_out"]
        assert all(gene in label.split("+") for label in in_set(obs, labels, "test")["perturbation"])
        assert not any(gene in label.split("+") for label in in_set(obs, labels, "train")["perturbation"])
    assert len(folds("unseen_context", obs, KEYS)) == 4
    with pytest.raises(ConfigError, match="has no folds"):
        folds("unseen_dose", obs, KEYS)


def test_random_is_stratified_by_condition(obs):
    labels = build_split("random", obs, KEYS).labels(obs)
    tested = in_set(obs, labels, "test")["perturbation"]
    assert set(GENES) <= set(tested)
    assert set(GENES + PAIRS) <= set(in_set(obs, labels, "train")["perturbation"])


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_control_cells(name):
    few, many = make_obs(n_control=200), make_obs(n_control=400)
    controls = (few["perturbation"] == "control").to_numpy()
    assert set(build_split(name, few, KEYS).labels(few)[controls]) == {"train"}
    labels = pd.Series(build_split(name, many, KEYS).labels(many), many.index)[many["perturbation"] == "control"]
    share = labels.groupby(many["cell_type"]).value_counts(normalize=True).unstack()
    assert share["test"].between(0.17, 0.2).all() and share["val"].between(0.07, 0.1).all()


def test_spelling_of_conditions_does_not_matter(obs):
    respelt = obs.assign(perturbation=[" + ".join(reversed(label.split("+"))) for label in obs["perturbation"]])
    split = build_split("unseen_combination", obs, KEYS)
    assert split.labels(respelt).tolist() == split.labels(obs).tolist()
    split.verify(respelt)
    assert "g7+g7" in split.assignment and "g7" in split.assignment


def test_data_hash(obs):
    assert data_hash(obs, KEYS) == data_hash(obs.iloc[::-1], KEYS) == data_hash(obs.astype({"perturbation": "category"}), KEYS)
    assert data_hash(obs, KEYS) != data_hash(obs.iloc[1:], KEYS)
    table = pd.DataFrame({"p": ["control", "B+A"], "c": ["K", "K"], "d": [0, 0.5], "t": [0, 3]})
    expected = hashlib.sha256(b"perturbation\tcontext\tdose\ttime\nA+B\tK\t0.5\t3\t1\ncontrol\tK\t0\t0\t1").hexdigest()
    assert data_hash(table, Keys("p", "control", context_key="c", dose_key="d", time_key="t")) == expected  # the same on any machine
    split = build_split("lopo", obs, KEYS)
    with pytest.raises(DataError, match="built on other data"):
        split.verify(obs.iloc[1:])


def test_labels_of_part_of_the_cells(obs):
    split = build_split("unseen_combination", obs, KEYS)
    part = obs[obs["perturbation"].isin(PAIRS)]
    assert split.labels(part).tolist() == pd.Series(split.labels(obs), obs.index)[part.index].tolist()
    with pytest.raises(DataError, match="does not know the perturbation 'g0\\+zz'"):
        split.labels(obs.assign(perturbation=obs["perturbation"].replace("g0+g1", "zz+g0")))


def test_categorical_columns_with_unused_levels(obs):
    categorical = obs.astype({"perturbation": "category", "cell_type": "category", "dose": "category"})
    part = categorical[categorical["cell_type"] != "K"]
    assert "K" not in str(build_split("unseen_context", part, KEYS).assignment)
    assert build_split("unseen_dose", categorical, KEYS) == build_split("unseen_dose", obs, KEYS)


def test_the_simulated_screen():
    obs = simulate_screen(**SMALL, doses=(0.1, 1, 10), times=(1, 3, 6)).adata.obs
    for name in SPLITS:
        split = build_split(name, obs, KEYS)
        assert Split.from_json(split.to_json()) == split


# ------------------------------------------------------------------------------------------------- planted problems


def test_the_audit_finds_planted_leaks(obs):
    def planted(name, choose, to, message):
        labels = build_split(name, obs, KEYS).labels(obs)
        rows = np.flatnonzero(choose(obs, labels))
        labels[rows] = to
        with pytest.raises(DataError, match=message):
            audit(name, obs, KEYS, labels)

    held_out = lambda obs, labels: labels == "test"  # noqa: E731
    control = lambda obs, labels: (obs["perturbation"] == "control").to_numpy()  # noqa: E731
    one_tested = lambda obs, labels: np.arange(len(obs)) == np.flatnonzero((labels == "test") & ~control(obs, labels))[0]  # noqa: E731
    for name in SPLITS:
        planted(name, control, "test", "no control cell is in train")
        planted(name, held_out, "train", "no perturbed cell is in test")
        if name != "random":
            planted(name, one_tested, "train", "is in test and train|are in test and elsewhere")
    planted("lopo", lambda obs, labels: np.arange(len(obs)) == 0, "tset", "unknown: \\['tset'\\]")
    planted("unseen_combination", lambda obs, labels: (obs["perturbation"] == "g1").to_numpy(), "test", "the single 'g1' is held out")
    in_k = lambda obs, labels: control(obs, labels) & (obs["cell_type"] == "K").to_numpy()  # noqa: E731
    planted("unseen_combination", in_k, "test", "context 'K' has held-out cells but no control")


def test_the_audit_finds_a_held_out_gene_inside_a_combination():
    obs = pd.DataFrame({"p": ["control", "A", "B", "A+B"]})
    with pytest.raises(DataError, match="'B' is held out, but a combination in train contains it"):
        audit("unseen_perturbation", obs, Keys("p", "control"), np.array(["train", "train", "test", "train"]))


def small(*labels, **columns):
    return pd.DataFrame({"p": ["control", *labels], **columns})


@pytest.mark.parametrize(
    ("name", "table", "arguments", "message"),
    [
        ("lopo", pd.DataFrame({"p": ["ctrl", "A", "B"]}), {}, "no cell has the control label 'control'"),
        ("lopo", small(), {}, "nothing to split"),
        ("lopo", small("A"), {}, "at least 2 perturbations"),
        ("lopo", small("A", "B"), {"held_out": "C"}, "no perturbation 'C'"),
        ("unseen_perturbation", small("A", "A"), {}, "at least 2 perturbations"),
        ("unseen_perturbation", small("A+B"), {}, "no perturbed cell is in train"),
        ("unseen_combination", small("A", "B"), {}, "combinations, and there are none"),
        ("unseen_combination", small("A+B"), {}, "no perturbed cell is in train"),
        ("unseen_context", small("A", c=["K", "K"]), {"held_out": "k562"}, "no context is called 'k562'"),
        ("unseen_context", small("A", "A", c=["K", "K", "L"]), {"held_out": "L"}, "'L' lacks control cells"),
        ("unseen_context", small("A", c=["K", "K"]), {}, "at least 2 contexts"),
        ("unseen_dose", small("A", "A", "B", d=[0, 1, 1, 2]), {}, "2 or more levels of dose"),
        ("unseen_dose", small("A", "A", "A", d=[0, 1, 2, 3]), {"level": 5}, "has the dose 5"),
        ("unseen_dose", small("A", d=["no", "1 uM"]), {}, "not a number"),
        ("unseen_time", small("A"), {}, "give time_key"),
        ("random", small("A", c=["K", None]), {}, "empty for 1 of 2"),
    ],
)
def test_screens_that_cannot_be_split(name, table, arguments, message):
    keys = Keys("p", "control", context_key="c" if "c" in table else (), dose_key="d" if "d" in table else None)
    with pytest.raises(DataError, match=message):
        build_split(name, table, keys, **arguments)


def test_misspelt_requests(obs):
    with pytest.raises(ConfigError, match="did you mean 'unseen_perturbation'"):
        build_split("unseen_pertubation", obs, KEYS)
    with pytest.raises(ConfigError, match="did you mean 'test_fraction'"):
        build_split("unseen_combination", obs, KEYS, test_fracton=0.5)
    with pytest.raises(ConfigError, match="leave a part to train on"):
        build_split("unseen_combination", obs, KEYS, test_fraction=0.95)
    with pytest.raises(DataError, match="did you mean 'cell_type'"):
        build_split("lopo", obs, Keys("perturbation", "control", context_key="celltype"))
    with pytest.raises(DataError, match="occurs more than once"):
        build_split("lopo", obs.set_axis(["same"] * len(obs)), KEYS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "unknown entry 'extra'"),
        (lambda d: d.pop("assignment"), "lacks the entry 'assignment'"),
        (lambda d: d.update(format="counterflow split 9"), "not a split file of this version"),
        (lambda d: d["keys"].update(perturbation="x"), "did you mean 'perturbation_key'"),
        (lambda d: d["assignment"].update(g0="tain"), "has the set 'tain': did you mean 'train'"),
        (lambda d: d.update(assignment=["g0"]), "must be a JSON object"),
        (lambda d: d.update(seed="one"), "'seed'"),
        (lambda d: d.update(unit="perturbation"), "'unit'"),
        (lambda d: d.update(unit=["perturbaton"]), "did you mean 'perturbation'"),
    ],
)
def test_damaged_split_files(obs, tmp_path, change, message):
    content = json.loads(build_split("lopo", obs, KEYS).to_json())
    change(content)
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as error:
        Split.load(path)
    assert "split.json" in str(error.value)


def test_files_that_are_not_splits(tmp_path):
    with pytest.raises(DataError, match="cannot read the split file"):
        Split.load(tmp_path / "missing.json")
    for text in ("", "[1]", "perturbation,set\n"):
        with pytest.raises(DataError):
            Split.from_json(text)
