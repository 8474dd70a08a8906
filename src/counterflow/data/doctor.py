"""`doctor(adata)`: recognises how a file is labelled, lists what is wrong with it, and writes the declaration to paste.

It looks at names and values, changes nothing, and trains nothing. It proposes; you decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from counterflow.data.labels import parts
from counterflow.data.matrix import raw_matrix
from counterflow.data.schema import Setup, problems
from counterflow.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

CONTROL_NAMES = (
    "control", "ctrl", "controls", "nontargeting", "nt", "ntc", "negctrl", "negativecontrol", "dmso", "vehicle", "unstimulated", "unstim",
    "untreated", "mock", "wt", "wildtype", "neg", "negative", "safe", "safetargeting", "scramble", "scrambled", "none", "pbs", "intergenic",
    "aavs", "rest", "resting", "baseline", "egfp", "gfp", "luciferase",
)  # fmt: skip
"""Control labels of published screens, most usual first; compared without case, punctuation and digits."""

COLUMN_NAMES = {
    "perturbation": ("perturbation", "perturb", "condition", "gene", "target", "target_gene", "guide_target", "guide", "sgrna", "grna",
                     "guide_identity", "treatment", "drug", "compound", "stimulation", "stim", "perturbation_name", "product_name"),
    "cell type": ("cell_type", "celltype", "cell_line", "cellline", "cell_label", "cell", "line", "tissue", "louvain", "leiden", "cluster"),
    "donor": ("donor", "donor_id", "patient", "individual", "subject", "replicate", "mouse"),
    "batch": ("batch", "gem_group", "lane", "sample", "plate", "channel", "library", "experiment"),
    "dose": ("dose", "dose_val", "dose_value", "dosage", "concentration", "conc", "dose_um", "dose_nm"),
    "time": ("time", "timepoint", "time_h", "time_point", "hours", "hour", "time_after", "days"),
    "library size": ("n_counts_full", "n_counts", "total_counts", "umi_count", "ncount_rna", "ncounts", "n_umis", "library_size"),
}  # fmt: skip
"""Usual names of the columns, most usual first."""

_DELIMITERS = ("+", "_", "|", ";", ",", "-", " & ", "&")
_MAX_CONTEXT_LEVELS = 100


@dataclass(frozen=True)
class Diagnosis:
    """What was found. `str(diagnosis)` is the report; `setup` and `yaml` are ready to paste."""

    n_cells: int
    n_genes: int
    matrix: str  # what X and the layers hold, in words
    columns: dict[str, list[str]]  # role -> candidate columns, best first
    controls: dict[str, int]  # candidate control labels -> cells
    labels: dict[str, int]  # the commonest other labels -> cells
    combinations: int
    setup: Setup | None  # the proposed declaration; None where no perturbation column or control was recognised
    split: str | None  # a split that the data can carry
    problems: tuple[str, ...] = ()  # what stops the proposed declaration from being used
    notes: tuple[str, ...] = ()  # what is worth knowing
    path: str = "screen.h5ad"

    @property
    def python(self) -> str:
        """The `setup_anndata` call."""
        given = ", ".join(f"{name}={value!r}" for name, value in _given(self.setup).items())
        return f"cf.CounterFlow.setup_anndata(adata, {given})"

    @property
    def yaml(self) -> str:
        """A config file for `counterflow fit --config`."""
        import yaml

        run = Path(self.path).stem
        content: dict[str, Any] = {"data": {"path": self.path}} | ({"split": self.split} if self.split else {})
        return yaml.safe_dump(
            content | {"out": f"runs/{run}", "setup": _given(self.setup)}, sort_keys=False, default_flow_style=None
        ).strip()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = asdict(self) | {"setup": None if self.setup is None else _given(self.setup)}
        return values | ({"python": self.python, "yaml": self.yaml} if self.setup else {})

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.n_cells:,} cells x {self.n_genes:,} genes", "", f"  matrix        {self.matrix}"]
        for role, found in self.columns.items():
            if found:
                others = f"   (or {', '.join(found[1:4])})" if len(found) > 1 else ""
                lines.append(f"  {role:<13} {found[0]}{others}")
        if self.controls:
            lines.append("  control       " + ", ".join(f"{name!r} ({n:,} cells)" for name, n in list(self.controls.items())[:3]))
        if self.labels:
            listed = ", ".join(f"{name} ({n:,})" for name, n in list(self.labels.items())[:5])
            lines.append(
                f"  conditions    {len(self.labels):,}, {self.combinations:,} of them combinations: {listed}"
                + (" ..." if len(self.labels) > 5 else "")
            )
        lines += ["", *_listed("wrong", self.problems), *_listed("to know", self.notes)]
        if self.setup is None:
            return "\n".join([*lines, "no declaration can be proposed: name the perturbation column and the control label yourself"])
        lines += ["declare it in Python:", "", f"  {self.python}", "", "or in a file for `counterflow fit --config FILE`:", ""]
        return "\n".join([*lines, *(f"  {line}" for line in self.yaml.splitlines())])


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {i}. {text}" for i, text in enumerate(texts, 1)), ""] if texts else []


def _given(setup: Setup | None) -> dict[str, Any]:
    """The options that differ from their defaults."""
    if setup is None:
        return {}
    default = Setup("", "").to_dict()
    return {name: value for name, value in setup.to_dict().items() if value != default[name]}


def doctor(adata: AnnData | str | os.PathLike[str]) -> Diagnosis:
    """Recognise how a screen is labelled, list what is wrong with it, and propose a declaration.

    Parameters
    ----------
    adata
        An AnnData, or the path of an h5ad file. Nothing is changed.

    Raises
    ------
    DataError
        If the file cannot be read.
    """
    path = "screen.h5ad"
    if isinstance(adata, str | os.PathLike):
        from counterflow.data.files import read_h5ad

        path = os.fspath(adata)
        adata = read_h5ad(path)
    columns = {role: _columns(adata.obs, role) for role in COLUMN_NAMES}
    layer, state, matrix, notes = _matrix(adata)
    key, controls = _perturbation(adata.obs, columns["perturbation"])
    if key is None or not controls:
        labels = {} if key is None else _counts(adata.obs[key])
        return Diagnosis(adata.n_obs, adata.n_vars, matrix, columns, {}, labels, 0, None, None, (), tuple(notes), path)
    columns["perturbation"] = [key, *(name for name in columns["perturbation"] if name != key)]
    control = next(iter(controls))
    setup = _declaration(adata, columns, key, control, layer, state)
    labels = {name: n for name, n in _counts(adata.obs[key]).items() if parts(name, setup.delimiter, control)}
    combinations = sum(len(parts(name, setup.delimiter, control)) > 1 for name in labels)
    found = problems(adata, setup)
    split = None if found else suggest_split(adata.obs, setup)
    notes += _notes(adata, setup, controls, labels)
    return Diagnosis(
        adata.n_obs, adata.n_vars, matrix, columns, controls, labels, combinations, setup, split, tuple(found), tuple(notes), path
    )


# ------------------------------------------------------------------------------------------------------------- what the columns are


def _columns(obs: pd.DataFrame, role: str) -> list[str]:
    """Columns whose names fit a role, by how usual the name is."""
    usual = COLUMN_NAMES[role]
    ranked = []
    for column in obs.columns:
        name = re.sub(r"[\s.\-]+", "_", str(column)).lower()
        if name in usual and _fits(obs[column], role):
            ranked.append((usual.index(name), str(column)))
    return [column for _, column in sorted(ranked)]


def _fits(values: pd.Series, role: str) -> bool:
    """Whether the values can be what the name says."""
    if role in ("dose", "time"):
        return _numbers(values) is not None
    if role == "library size":
        numbers = _numbers(values)
        return numbers is not None and len(numbers) > 0 and float(numbers.max()) > 10
    if role == "perturbation":
        return 2 <= values.nunique() <= max(2, len(values) // 2)
    return values.nunique() <= _MAX_CONTEXT_LEVELS


def _numbers(values: pd.Series) -> np.ndarray | None:
    numbers = pd.to_numeric(values.astype(str), errors="coerce").to_numpy()
    return numbers if np.isfinite(numbers).all() and (numbers >= 0).all() else None


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(name): int(n) for name, n in values.dropna().astype(str).value_counts().items()}


def _perturbation(obs: pd.DataFrame, named: list[str]) -> tuple[str | None, dict[str, int]]:
    """The perturbation column and its candidate controls: the first usual name with a control in it, else any column with one."""
    others = [str(column) for column in obs.columns if column not in named and 2 <= obs[column].nunique() <= max(2, len(obs) // 2)]
    for column in [*named, *(name for name in others if not pd.api.types.is_numeric_dtype(obs[name]))]:
        if controls := control_labels(_counts(obs[column])):
            return column, controls
    return (named[0] if named else None), {}


def control_labels(counts: dict[str, int]) -> dict[str, int]:
    """Labels that are usually controls, the most usual name first, then by cells."""
    ranked = []
    for label, n in counts.items():
        word = re.sub(r"[^a-z]+", "", label.lower())
        doubled = word[: len(word) // 2] if word[: len(word) // 2] * 2 == word else word  # "ctrl+ctrl", "NT_NT"
        if doubled in CONTROL_NAMES:
            ranked.append((CONTROL_NAMES.index(doubled), -n, label))
    return {label: -n for _, n, label in sorted(ranked)}


def delimiter_of(labels: Sequence[str], control: str) -> str:
    """What joins the parts of combinations: the character at which most labels fall into parts that are labels themselves."""
    known = set(labels) | {control}
    score = {}
    for delimiter in _DELIMITERS:
        joined = [label for label in labels if delimiter in label and label != control]
        score[delimiter] = sum(sum(_is_known(part, known, delimiter, control) for part in label.split(delimiter)) / 2 for label in joined)
    best = max(_DELIMITERS, key=lambda delimiter: score[delimiter])
    return best if score[best] > 0 else "+"


def _is_known(part: str, known: set[str], delimiter: str, control: str) -> bool:
    """A part is known alone, or beside the control as in "A+ctrl"."""
    part = part.strip()
    return bool(part) and any(name in known for name in (part, f"{part}{delimiter}{control}", f"{control}{delimiter}{part}"))


# -------------------------------------------------------------------------------------------------------------- what the matrix is


def _matrix(adata: AnnData) -> tuple[str | None, str, str, list[str]]:
    """Layer, matrix state, both in words, and notes; counts are preferred to log1p wherever they are."""
    kinds = {None: kind_of(adata, None)} | {name: kind_of(adata, name) for name in adata.layers}
    words = ", ".join(f"{'X' if layer is None else f'layers[{layer!r}]'}: {kind}" for layer, kind in kinds.items())
    notes = []
    if adata.raw is not None:
        notes.append("adata.raw is there too; counterflow does not read it: copy it into a layer if it holds the counts")
    for state in ("counts", "log1p"):
        for layer, kind in kinds.items():
            if kind == state:
                return layer, state, words, notes
    return None, "counts", words, notes


def kind_of(adata: AnnData, layer: str | None) -> str:
    """counts, log1p, or what else it looks like."""
    try:
        matrix = raw_matrix(adata, layer)
    except DataError:
        return "nothing"
    values: np.ndarray = np.asarray(matrix.data if sparse.issparse(matrix) else matrix)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        return f"dtype {values.dtype}"
    if not values.size or not np.isfinite(values).all():
        return "empty" if not values.size else "has NaN or infinite values"
    low, high = float(values.min()), float(values.max())
    if low < 0:
        return "scaled or centred (negative values)"
    if np.array_equal(values, np.rint(values)):
        return "counts" if high > 0 else "only zeros"
    return "log1p" if high <= 30 else "normalised, not logarithmic"


# ------------------------------------------------------------------------------------------------------------- what is proposed


def _declaration(adata: AnnData, columns: dict[str, list[str]], key: str, control: str, layer: str | None, state: str) -> Setup:
    """The proposed declaration: contexts with controls are matched and read; doses and times need at least two levels."""
    obs = adata.obs
    delimiter = delimiter_of(list(_counts(obs[key])), control)
    control_cells = obs[key].astype(str).map(lambda label: not parts(label, delimiter, control))
    taken = {key}
    contexts = []
    for role in ("cell type", "donor", "batch"):
        for column in columns[role]:
            if column not in taken and obs[column].nunique() > 1 and not obs[column].isna().any():
                covered = set(obs[column][control_cells].astype(str)) == set(obs[column].astype(str))
                if covered and role != "batch":
                    contexts.append(column)
                break
    amounts: dict[str, str | None] = {}
    for role in ("dose", "time"):
        varied = [name for name in columns[role] if name not in taken and obs[name][~control_cells].nunique() > 1]
        amounts[role] = varied[0] if varied else None
    library = next((name for name in columns["library size"] if _covers_all_genes(adata, layer, state, name)), None)
    return Setup(
        perturbation_key=key, control=control, layer=layer, matrix_state="log1p" if state == "log1p" else "counts",
        covariate_keys=tuple(contexts), match_keys=tuple(contexts), dose_key=amounts["dose"], time_key=amounts["time"],
        library_size_key=library, delimiter=delimiter,
    )  # fmt: skip


def _covers_all_genes(adata: AnnData, layer: str | None, state: str, column: str) -> bool:
    """Library sizes are worth declaring where they exceed the sums of the file: it holds a part of the genes."""
    library = _numbers(adata.obs[column])
    if library is None or state != "counts":
        return False
    matrix = raw_matrix(adata, layer)
    sums = np.asarray(matrix.sum(axis=1), dtype=float).ravel()
    return bool((library + 0.5 >= sums).all() and library.sum() > 1.02 * sums.sum())


def suggest_split(obs: pd.DataFrame, setup: Setup) -> str | None:
    """The hardest question this screen can be asked: combinations, then doses, times, contexts, perturbations, cells."""
    from counterflow.data.split_file import Keys
    from counterflow.data.splits import build_split

    keys = Keys(
        setup.perturbation_key, setup.control, setup.delimiter, setup.match_keys or setup.covariate_keys, setup.dose_key, setup.time_key
    )
    labels = {label: parts(label, setup.delimiter, setup.control) for label in _counts(obs[setup.perturbation_key])}
    n_combined = sum(len(names) > 1 for names in labels.values())
    n_single = len({name for names in labels.values() for name in names})
    carried: list[tuple[str, Callable[[], bool]]] = [
        ("unseen_combination", lambda: n_combined >= 4),
        ("unseen_dose", lambda: setup.dose_key is not None),
        ("unseen_time", lambda: setup.time_key is not None),
        ("unseen_context", lambda: bool(keys.context_key) and n_single < 4),
        ("unseen_perturbation", lambda: n_single >= 4),
        ("random", lambda: True),
    ]
    for name, is_possible in carried:
        if is_possible():
            try:
                build_split(name, obs, keys)
            except DataError:
                continue
            return name
    return None


def _notes(adata: AnnData, setup: Setup, controls: dict[str, int], labels: dict[str, int]) -> list[str]:
    """What will not stop a fit, but changes what it means."""
    notes = []
    if len(controls) > 1:
        others = ", ".join(map(repr, list(controls)[1:4]))
        notes.append(
            f"several labels look like controls; {setup.control!r} was taken, {others} count as perturbations: rename them if they are not"
        )
    small = [name for name, n in labels.items() if n < 30]
    if small:
        notes.append(
            f"{len(small)} of {len(labels)} conditions have fewer than 30 cells ({', '.join(small[:3])}): scores on these are noise"
        )
    n_control = sum(n for name, n in _counts(adata.obs[setup.perturbation_key]).items() if name not in labels)
    if n_control < 100:
        notes.append(f"only {n_control} control cells: every effect is measured against them, and every prediction starts from one")
    if not adata.obs_names.is_unique:
        notes.append("cell names repeat (allowed; a split over cells needs unique ones: adata.obs_names_make_unique())")
    spread = float(np.mean([bool(re.match(r"ENS[A-Z]*G\d", name)) for name in adata.var_names[:1000]])) if adata.n_vars else 0.0
    measured = {name for label in labels for name in parts(label, setup.delimiter, setup.control)} & set(adata.var_names)
    if spread > 0.5:
        notes.append("genes are Ensembl ids: perturbations named by symbol find no feature row under 'coexpression'")
    elif not measured and not setup.dose_key:
        notes.append("no perturbed gene is among the measured genes: unseen perturbations have no coexpression features")
    return notes
