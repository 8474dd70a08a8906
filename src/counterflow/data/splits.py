"""Which cells a model may learn from: splits over conditions, never over cells (but for `random`, which says so).

=====================  ===============================================================  ===================================
split                  held out                                                         training sees
=====================  ===============================================================  ===================================
`unseen_perturbation`  genes or compounds, in every condition that contains them        all other conditions
`lopo`                 one gene or compound (leave one perturbation out)                all other conditions
`unseen_combination`   combinations                                                     every single, other combinations
`unseen_context`       all perturbed cells of one cell type, donor, line ...            its controls, the other contexts
`unseen_dose`          one level of every perturbation measured at two or more          the other levels
`unseen_time`          the same for time                                                the other levels
`random`               cells: NOT a test of generalisation, every condition is seen     the same conditions
=====================  ===============================================================  ===================================

Validation conditions are carved out of training by the same rule. Control cells stay in training; where there are more than 200,
a reference part of them (per context) is held back as validation and test, so that no effect is measured against cells that a model
has seen. A split knows conditions by name, is a small JSON file, and applies to any table with the same conditions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from counterflow.data.labels import parts
from counterflow.data.names import named_again
from counterflow.data.split_file import SETS, Keys, Split, condition_table, data_hash, unit_names
from counterflow.errors import ConfigError, DataError, near

MAX_UNSPLIT_CONTROLS = 200
REFERENCE_TEST, REFERENCE_VAL = 0.2, 0.1  # shares of the control cells held back where there are more


UNITS: dict[str, tuple[str, ...]] = {
    "unseen_perturbation": ("perturbation",),
    "lopo": ("perturbation",),
    "unseen_combination": ("perturbation",),
    "unseen_context": ("perturbation", "context"),
    "unseen_dose": ("perturbation", "dose"),
    "unseen_time": ("perturbation", "time"),
    "random": ("cell",),
}
"""What is held out together, in each split."""


def build_split(name: str, obs: pd.DataFrame, keys: Keys, *, seed: int = 0, **arguments: object) -> Split:
    """The split `name` of SPLITS, built on the cells of `obs`; `arguments` are those of its builder.

    Raises
    ------
    ConfigError
        For an unknown split or argument, or fractions that leave nothing to train on.
    DataError
        If the screen does not have what the split holds out.

    Examples
    --------
    >>> obs = pd.DataFrame({"gene": ["ctrl"] * 4 + ["A", "B", "C", "A+B", "A+C", "B+C"]})
    >>> split = build_split("unseen_combination", obs, Keys("gene", "ctrl"), val_fraction=0.0)
    >>> sorted(split.assignment.values())
    ['test', 'test', 'train', 'train', 'train', 'train']
    """
    if name not in SPLITS:
        raise ConfigError(f"no split is called {name!r}: {near(name, SPLITS)}")
    accepted = [argument for argument in inspect.signature(SPLITS[name]).parameters if argument not in ("obs", "keys", "seed")]
    for argument in arguments:
        if argument not in accepted:
            raise ConfigError(f"the split {name!r} has no argument {argument!r}: {near(argument, accepted)}")
    return SPLITS[name](obs, keys, seed=seed, **arguments)


def folds(name: str, obs: pd.DataFrame, keys: Keys, *, seed: int = 0, val_fraction: float = 0.1) -> list[Split]:
    """All folds of `lopo` or `unseen_context`: each perturbation, or each context, held out in turn."""
    if name == "lopo":
        held_out = _entities(_table(obs, keys), keys)
    elif name == "unseen_context":
        held_out = _contexts(_table(obs, keys), keys)
    else:
        raise ConfigError(f"the split {name!r} has no folds, only seeds; folds: 'lopo', 'unseen_context'")
    return [build_split(name, obs, keys, seed=seed, held_out=one, val_fraction=val_fraction) for one in held_out]


# ------------------------------------------------------------------------------------------------------------------- builders


def unseen_perturbation(obs: pd.DataFrame, keys: Keys, *, seed: int = 0, test_fraction: float = 0.25, val_fraction: float = 0.1) -> Split:
    """Hold out a share of the genes or compounds: every condition that contains one, alone or combined, leaves training."""
    table = _table(obs, keys)
    entities = _entities(table, keys)
    _need(len(entities) >= 2, "unseen_perturbation", f"at least 2 perturbations; there is only {entities}", "unseen_context or random")
    dealt = _deal(entities, seed, test_fraction, val_fraction)
    return _by_entity("unseen_perturbation", obs, keys, table, seed, dealt, test_fraction=test_fraction, val_fraction=val_fraction)


def lopo(obs: pd.DataFrame, keys: Keys, *, held_out: str | None = None, seed: int = 0, val_fraction: float = 0.1) -> Split:
    """Leave one perturbation out: `held_out`, or one that the seed chooses; see `folds` for all of them in turn."""
    table = _table(obs, keys)
    entities = _entities(table, keys)
    _need(len(entities) >= 2, "lopo", f"at least 2 perturbations; there is only {entities}", "unseen_context or random")
    if held_out is None:
        held_out = str(np.random.default_rng(seed).choice(entities))
    if held_out not in entities:
        raise DataError(f"lopo: there is no perturbation {held_out!r}: {near(held_out, entities)}")
    others = [entity for entity in entities if entity != held_out]
    dealt = {held_out: "test"} | _deal(others, seed, 0.0, val_fraction)
    return _by_entity("lopo", obs, keys, table, seed, dealt, held_out=held_out, val_fraction=val_fraction)


def unseen_combination(obs: pd.DataFrame, keys: Keys, *, seed: int = 0, test_fraction: float = 0.5, val_fraction: float = 0.1) -> Split:
    """Hold out a share of the combinations, whether or not their parts are measured alone (see `strata`); every single stays."""
    table = _table(obs, keys)
    conditions = _conditions(table)
    combined = [condition for condition in conditions if len(_parts(condition, keys)) >= 2]
    example = f"a combination is written 'A{keys.delimiter}B' in obs[{keys.perturbation_key!r}]; the delimiter is {keys.delimiter!r}"
    _need(len(combined) >= 1, "unseen_combination", f"combinations, and there are none ({example})", "unseen_perturbation")
    assignment = dict.fromkeys(conditions, "train") | _deal(combined, seed, test_fraction, val_fraction)
    return _finish("unseen_combination", obs, keys, table, seed, assignment, test_fraction=test_fraction, val_fraction=val_fraction)


def unseen_context(obs: pd.DataFrame, keys: Keys, *, held_out: str | None = None, seed: int = 0, val_fraction: float = 0.1) -> Split:
    """Hold out all perturbed cells of the context `held_out`, or of one that the seed chooses; its controls stay.

    Validation is another context where there are at least four, otherwise some conditions of the contexts that are left.
    Several context columns make joint levels, written "A549 | rep1".
    """
    table = _table(obs, keys)
    contexts = _contexts(table, keys)
    rng = np.random.default_rng(seed)
    if held_out is None:
        held_out = str(rng.choice(contexts))
    if held_out not in set(table["context"]):
        raise DataError(f"unseen_context: no context is called {held_out!r}: {near(held_out, sorted(set(table['context'])))}")
    if held_out not in contexts:
        raise DataError(
            f"unseen_context: the context {held_out!r} lacks control cells or perturbed cells, so there is nothing to predict from or "
            f"to compare with; contexts with both: {contexts}"
        )
    perturbed = table[~table["is_control"]]
    context_of = dict(zip(unit_names(perturbed, UNITS["unseen_context"]), perturbed["context"], strict=True))
    left = [unit for unit in sorted(context_of) if context_of[unit] != held_out]
    _need(len(left) >= 1, "unseen_context", "perturbed cells in at least 2 contexts", "unseen_perturbation or random")
    if len(contexts) >= 4:
        levels = _deal([context for context in contexts if context != held_out], seed, 0.0, val_fraction)
        of_left = {unit: levels.get(context_of[unit], "train") for unit in left}
    else:
        of_left = _deal(left, seed, 0.0, val_fraction)
    assignment = {unit: of_left.get(unit, "test") for unit in sorted(context_of)}
    return _finish("unseen_context", obs, keys, table, seed, assignment, held_out=held_out, val_fraction=val_fraction)


def unseen_dose(obs: pd.DataFrame, keys: Keys, *, level: float | str = "middle", seed: int = 0, val_fraction: float = 0.1) -> Split:
    """Hold out one dose `level`: "middle" (interpolation), "last" (extrapolation) or a dose, of every perturbation measured at two or more.

    With the control, which is dose 0, these are at least three levels: one to ask for and two to learn from.
    Validation is a share of the conditions that are left of these perturbations.
    """
    return _unseen_level("dose", keys.dose_key, obs, keys, level, seed, val_fraction)


def unseen_time(obs: pd.DataFrame, keys: Keys, *, level: float | str = "middle", seed: int = 0, val_fraction: float = 0.1) -> Split:
    """The same as `unseen_dose` for time after the perturbation."""
    return _unseen_level("time", keys.time_key, obs, keys, level, seed, val_fraction)


def random_cells(obs: pd.DataFrame, keys: Keys, *, seed: int = 0, test_fraction: float = 0.2, val_fraction: float = 0.1) -> Split:
    """Hold out cells of every condition. NOT a test of generalisation: it tells whether a model fits the conditions it has seen."""
    table = _table(obs, keys)
    _need_unique_names(obs)
    _check_fractions(test_fraction, val_fraction)
    assignment = _deal_cells(table[~table["is_control"]], "perturbation", np.random.default_rng(seed), test_fraction, val_fraction)
    return _finish("random", obs, keys, table, seed, assignment, test_fraction=test_fraction, val_fraction=val_fraction)


SPLITS: dict[str, Callable[..., Split]] = {
    "random": random_cells,
    "unseen_perturbation": unseen_perturbation,
    "unseen_combination": unseen_combination,
    "unseen_context": unseen_context,
    "unseen_dose": unseen_dose,
    "unseen_time": unseen_time,
    "lopo": lopo,
}


# ---------------------------------------------------------------------------------------------------------- strata and audit


def strata(split: Split, obs: pd.DataFrame) -> dict[str, str]:
    """How far each held-out perturbation label is from training: "single", or "combo_seen0" ... by the parts met in training.

    A part counts as seen when any training condition contains it, alone or in another combination.
    """
    table = condition_table(obs, split.keys)
    perturbed = ~table["is_control"].to_numpy()
    labels, sets = table["perturbation"].to_numpy()[perturbed], split.labels(obs)[perturbed]
    seen = {part for label in np.unique(labels[sets == "train"].astype(str)) for part in _parts(label, split.keys)}
    result = {}
    for label in np.unique(labels[sets != "train"].astype(str)):
        of_label = _parts(label, split.keys)
        result[str(label)] = f"combo_seen{sum(part in seen for part in of_label)}" if len(of_label) > 1 else "single"
    return result


def audit(name: str, obs: pd.DataFrame, keys: Keys, labels: np.ndarray) -> None:
    """Check that the sets `labels` (one of "train", "val", "test" per row) are what the split `name` promises; works on any labels.

    Raises
    ------
    DataError
        Listing everything that is wrong: a condition in two sets, a held-out perturbation met in training, no controls to train on ...
    """
    if name not in SPLITS:
        raise ConfigError(f"no split is called {name!r}: {near(name, SPLITS)}")
    table, labels = condition_table(obs, keys), np.asarray(labels)
    unknown = sorted(set(labels.tolist()) - set(SETS))
    if len(labels) != len(obs) or unknown:
        raise DataError(f"a split needs one of {SETS} for each of the {len(obs)} cells; got {len(labels)} labels, unknown: {unknown}")
    control = table["is_control"].to_numpy()
    problems = [
        f"no {what} cell is in {where}"
        for what, which, where in [("control", control, "train"), ("perturbed", ~control, "train"), ("perturbed", ~control, "test")]
        if not (which & (labels == where)).any()
    ]
    without = set(table["context"][~control & (labels != "train")]) - set(table["context"][control & (labels == "train")])
    problems += [f"the context {context!r} has held-out cells but no control cell in train" for context in sorted(without) if context]
    problems += _leaks(name, table[~control], keys, labels[~control])
    if problems:
        raise DataError(f"the split {name!r} does not hold what it promises: " + "; ".join(problems))


def _leaks(name: str, table: pd.DataFrame, keys: Keys, labels: np.ndarray) -> Iterable[str]:
    """What the perturbed cells of training have in common with those held out, and should not."""
    pairs = pd.DataFrame({"unit": unit_names(table, UNITS[name]).to_numpy(), "set": labels}).drop_duplicates()
    for unit in pairs["unit"][pairs["unit"].duplicated()].unique() if name != "random" else ():
        yield f"{unit!r} is in {' and '.join(sorted(pairs['set'][pairs['unit'] == unit]))}"
    of_set = {where: {str(label) for label in table["perturbation"][labels == where].unique()} for where in SETS}
    if name in ("unseen_perturbation", "lopo"):
        trained = {part for label in of_set["train"] for part in _parts(label, keys)}
        singles = {label for label in of_set["test"] | of_set["val"] if len(_parts(label, keys)) == 1}
        for entity in sorted(trained & singles):
            yield f"{entity!r} is held out, but a combination in train contains it"
    if name == "unseen_combination":
        for single in sorted(label for label in of_set["test"] | of_set["val"] if len(_parts(label, keys)) == 1):
            yield f"the single {single!r} is held out"
    if name == "unseen_context":
        for context in sorted(set(table["context"][labels == "test"]) & set(table["context"][labels != "test"])):
            yield f"perturbed cells of the context {context!r} are in test and elsewhere"


# -------------------------------------------------------------------------------------------------------- parts of the builders


def _unseen_level(axis: str, key: str | None, obs: pd.DataFrame, keys: Keys, level: float | str, seed: int, val_fraction: float) -> Split:
    name = f"unseen_{axis}"
    if key is None:
        raise DataError(f"{name} needs the column of the {axis}: give {axis}_key")
    table = _table(obs, keys)
    perturbed = table[~table["is_control"]]
    levels_of = perturbed.groupby("perturbation")[axis].agg(lambda values: sorted(set(values), key=float))
    levels_of = levels_of[levels_of.map(len) >= 2]
    found = sorted(set(perturbed[axis]), key=float)
    _need(
        len(levels_of) > 0,
        name,
        f"a perturbation at 2 or more levels of {axis} besides the control; obs[{key!r}] has {found}",
        "unseen_perturbation",
    )
    levels = sorted(set().union(*levels_of), key=float)
    if level == "middle":
        chosen = levels[(len(levels) - 1) // 2]
    elif level == "last":
        chosen = levels[-1]
    else:
        chosen = next((known for known in levels if known == str(level) or _same_number(known, level)), "")
    if not chosen:
        raise DataError(f"{name}: no perturbation at 2 or more levels has the {axis} {level!r}; it is 'middle', 'last' or one of {levels}")
    units = perturbed.assign(unit=unit_names(perturbed, UNITS[name])).drop_duplicates("unit").set_index("unit").sort_index()
    varied = units["perturbation"].isin(levels_of.index)
    held_out = units.index[varied & (units[axis] == chosen)]
    left = units.index[varied & (units[axis] != chosen)]
    assignment = dict.fromkeys(units.index, "train") | _deal(list(left), seed, 0.0, val_fraction) | dict.fromkeys(held_out, "test")
    return _finish(name, obs, keys, table, seed, assignment, level=chosen, val_fraction=val_fraction)


def _same_number(known: str, level: object) -> bool:
    try:
        return float(known) == float(level)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _by_entity(
    name: str, obs: pd.DataFrame, keys: Keys, table: pd.DataFrame, seed: int, dealt: dict[str, str], **arguments: object
) -> Split:
    """Conditions follow their most held-out part."""
    assignment = {condition: max((dealt[part] for part in _parts(condition, keys)), key=SETS.index) for condition in _conditions(table)}
    return _finish(name, obs, keys, table, seed, assignment, **arguments)


def _finish(
    name: str,
    obs: pd.DataFrame,
    keys: Keys,
    table: pd.DataFrame,
    seed: int,
    assignment: dict[str, str],
    **arguments: object,
) -> Split:
    split = Split(name, seed, keys, UNITS[name], assignment, data_hash(obs, keys), _reference(obs, table, seed), arguments)
    audit(name, obs, keys, split.labels(obs))
    return split


def _reference(obs: pd.DataFrame, table: pd.DataFrame, seed: int) -> dict[str, str]:
    """Control cells held back, in the same shares of every context; none where there are few."""
    controls = table[table["is_control"]]
    if len(controls) <= MAX_UNSPLIT_CONTROLS:
        return {}
    _need_unique_names(obs)
    dealt = _deal_cells(controls, "context", np.random.default_rng([seed, 1]), REFERENCE_TEST, REFERENCE_VAL)
    return {cell: where for cell, where in dealt.items() if where != "train"}


def _deal_cells(table: pd.DataFrame, by: str, rng: np.random.Generator, test_fraction: float, val_fraction: float) -> dict[str, str]:
    """Cell name -> set, in the same shares of every group; rounded down, so that a small group stays in training."""
    result: dict[str, str] = {}
    for _, group in table.groupby(by, sort=True):
        cells = rng.permutation(group.index.astype(str).to_numpy())
        n_test, n_val = int(test_fraction * len(cells)), int(val_fraction * len(cells))
        sets = np.repeat(["test", "val", "train"], [n_test, n_val, len(cells) - n_test - n_val])
        result |= dict(zip(cells.tolist(), sets.tolist(), strict=True))
    return result


def _deal(items: list[str], seed: int, test_fraction: float, val_fraction: float) -> dict[str, str]:
    """Item -> set by a seeded permutation; at least one for test and one for val where a share is asked for and enough are left."""
    _check_fractions(test_fraction, val_fraction)
    n_test = max(1, round(test_fraction * len(items))) if test_fraction else 0
    n_val = max(1, round(val_fraction * len(items))) if val_fraction and len(items) - n_test >= 3 else 0
    sets = np.repeat(["test", "val", "train"], [n_test, n_val, len(items) - n_test - n_val])
    return dict(zip(np.random.default_rng(seed).permutation(np.array(items, dtype=object)), sets.tolist(), strict=True))


def _check_fractions(test_fraction: float, val_fraction: float) -> None:
    if not (0.0 <= test_fraction < 1.0 and 0.0 <= val_fraction < 1.0 and test_fraction + val_fraction < 1.0):
        raise ConfigError(f"test_fraction={test_fraction} and val_fraction={val_fraction} must be at least 0 and leave a part to train on")


def _need(condition: bool, name: str, what: str, instead: str) -> None:
    if not condition:
        raise DataError(f"the split {name!r} needs {what}. Use {instead} for this screen.")


def _need_unique_names(obs: pd.DataFrame) -> None:
    if len(twice := named_again(obs.index)):
        raise DataError(f"cells are held out by name, but {twice[0]!r} occurs more than once: call adata.obs_names_make_unique() first")


def _conditions(table: pd.DataFrame) -> list[str]:
    return sorted(table["perturbation"][~table["is_control"]].unique())


def _entities(table: pd.DataFrame, keys: Keys) -> list[str]:
    return sorted({part for condition in _conditions(table) for part in _parts(condition, keys)})


def _parts(condition: str, keys: Keys) -> tuple[str, ...]:
    return parts(condition, keys.delimiter, keys.control)


def _contexts(table: pd.DataFrame, keys: Keys) -> list[str]:
    """Contexts with both control and perturbed cells."""
    if not keys.context_key:
        raise DataError("unseen_context needs the column of the context (cell type, donor, line): give context_key")
    both = set(table["context"][table["is_control"]]) & set(table["context"][~table["is_control"]])
    _need(len(both) >= 1, "unseen_context", "a context with both control and perturbed cells", "unseen_perturbation")
    return sorted(both)


def _table(obs: pd.DataFrame, keys: Keys) -> pd.DataFrame:
    """The `condition_table`, in which there must be control cells and others."""
    table = condition_table(obs, keys)
    if not table["is_control"].any():
        known = sorted(set(table["perturbation"]))
        raise DataError(f"no cell has the control label {keys.control!r} in obs[{keys.perturbation_key!r}]: {near(keys.control, known)}")
    if table["is_control"].all():
        raise DataError(f"every cell has the control label {keys.control!r} in obs[{keys.perturbation_key!r}]: there is nothing to split")
    return table
