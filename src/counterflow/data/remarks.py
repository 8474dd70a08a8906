"""What does not stop a fit, but changes what it means: said once, when data are declared, and by `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from counterflow.data.labels import distinct_rows, texts
from counterflow.data.matrix import matrix_remarks
from counterflow.data.names import named_again
from counterflow.data.schema import Setup, is_control_mask, listed
from counterflow.data.stored import is_stored, stored_remarks

if TYPE_CHECKING:
    from anndata import AnnData

SET_SIZE = 64  # cells of one condition that a training step reads, unless told otherwise
LOST_LABELS = (
    "nan", "na", "n/a", "null", "unknown", "unassigned", "undetermined", "missing", "doublet", "multiplet", "multiple", "ambiguous",
)  # fmt: skip


def remarks(adata: AnnData, setup: Setup) -> list[str]:
    """What does not stop a fit, but is worth knowing. Of an AnnData without problems."""
    found = stored_remarks(adata, setup) if is_stored(adata, setup.layer) else matrix_remarks(adata, setup.layer)
    if len(twice := named_again(adata.obs_names)):
        found.append(
            f"{len(twice)} cell names occur more than once (first: {twice[0]!r}): allowed, but no split can hold out such a cell by name; "
            "adata.obs_names_make_unique() mends it"
        )
    labels = texts(adata.obs[setup.perturbation_key])
    control = is_control_mask(labels, setup)
    for key in (key for key in setup.covariate_keys if key not in setup.match_keys):
        levels = texts(adata.obs[key])
        if bare := sorted(set(levels[~control]) - set(levels[control])):
            found.append(
                f"{len(bare)} levels of covariate {key!r} have no control cell (first: {listed(bare)}): effects there are measured against "
                "controls of other levels"
            )
    groups = labels.where(~control, setup.control)
    lost = [label for label in groups.unique() if label.strip().lower() in LOST_LABELS]
    columns = {"": groups, **{key: adata.obs[key].reset_index(drop=True) for key in setup.match_keys}}
    rows, codes = distinct_rows(pd.DataFrame(columns), ["", *setup.match_keys])
    sizes = pd.Series(np.bincount(codes), index=[" / ".join(row) for row in rows]).sort_values(ascending=False, kind="stable")
    small = sizes[sizes < SET_SIZE]
    if len(small):
        found.append(
            f"{len(small)} of {len(sizes)} groups of one condition{' and context' if setup.match_keys else ''} have fewer than "
            f"{SET_SIZE} cells (fewest: {small.index[-1]!r}, {small.iloc[-1]}): their cells repeat within a training set"
        )
    if lost:
        found.append(f"the labels {listed(lost)} look like missing values, and count as perturbations: drop these cells if they are none")
    return found
