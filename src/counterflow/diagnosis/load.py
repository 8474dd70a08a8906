"""From a file in anybody's convention to declared cells, in one call."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from counterflow.data.files import read_h5ad
from counterflow.data.schema import Setup, declare
from counterflow.diagnosis.doctor import doctor
from counterflow.errors import ConfigError, DataError, near, warn

if TYPE_CHECKING:
    from anndata import AnnData


def load_screen(path: str | os.PathLike[str], **declared: Any) -> AnnData:
    """Read a local file as GEARS, CPA, PerturBench, scPerturb, pertpy or the Virtual Cell Challenge leave it, and declare what it holds.

    What `doctor` proposes is declared, and said in a warning: it was read off names and values, and a person should look at it. Nothing is
    downloaded.

    Parameters
    ----------
    path
        An ``.h5ad`` file.
    declared
        What you know better: arguments of `CounterFlow.setup_anndata`.

    Raises
    ------
    DataError
        If no perturbation column or control is recognised, or what is recognised cannot be used.
    ConfigError
        For an argument that `setup_anndata` does not have.
    """
    names = [field.name for field in fields(Setup)]
    if unknown := [name for name in declared if name not in names]:
        raise ConfigError(f"load_screen: setup_anndata has no argument {unknown[0]!r}: {near(unknown[0], names)}")
    adata = read_h5ad(path)
    found = doctor(adata)
    proposed = {} if found.setup is None else found.setup.to_dict()
    if found.setup is None and not {"perturbation_key", "control"} <= set(declared):
        raise DataError(
            f"{os.fspath(path)!r}: no perturbation column with a control label was recognised; give perturbation_key=... and control=... "
            f"(columns: {', '.join(map(str, adata.obs.columns[:12]))})"
        )
    setup = Setup.from_dict(proposed | declared)
    declare(adata, setup)
    like = "" if found.labeling == "plain" else f" (labelled like {found.labeling})"
    said = ", ".join(f"{name}={value!r}" for name, value in setup.to_dict().items() if value not in (None, False, (), []))
    warn(f"{os.path.basename(os.fspath(path))} was declared as{like}: {said}. Look whether that is right", above=2)
    return adata
