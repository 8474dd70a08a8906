"""What `fit` and `compare` begin with: a file, its declaration, and which cells are held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from counterflow.cli.parser import VerbParser
from counterflow.data.schema import Setup, declare
from counterflow.errors import ConfigError, near, warn

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.split_file import Split

SIMULATED = "simulated"  # instead of a path: the default simulated screen
SPLIT_COLUMN = "counterflow_split"


def add_screen_options(parser: VerbParser) -> None:
    """FILE, --data.path, --setup.*, --split and the seeds."""
    from counterflow.model import CounterFlow

    parser.positional("file", f"the screen (.h5ad), or '{SIMULATED}'", optional=True)
    parser.config_file()
    parser.option("data.path", str | None, None, "the same as FILE, for config files")
    parser.option("seed", int, 0, "seed of the fit and, unless --split_seed is given, of the split")
    parser.option("split", str | None, None, "what to hold out: the name of a split (unseen_combination, ...) or a split file (.json)")
    parser.option("held_out", str | None, None, "the level to hold out: a context, a perturbation, a dose or a time")
    parser.option("split_seed", int | None, None, "seed of the split (default: --seed)")
    parser.call("setup", CounterFlow.setup_anndata)


def data_path(options: Namespace) -> str:
    """FILE, or `data.path` of the config file."""
    path = options.file or options.data.path
    if not path:
        raise ConfigError(f"no data: give a FILE (.h5ad), data: {{path: ...}} in the config file, or '{SIMULATED}'")
    return path


def read_data(path: str) -> AnnData:
    """The AnnData at `path`."""
    if path == SIMULATED:
        from counterflow.data.simulate import simulate_screen

        return simulate_screen().adata
    from counterflow.data.files import read_h5ad

    return read_h5ad(path)


def only_kept(adata: AnnData, setup: Setup) -> AnnData:
    """The cells that the declaration keeps; how many it leaves out is said on stderr."""
    from counterflow.data.dropping import kept_cells

    kept = kept_cells(adata, setup)
    if kept.n_obs < adata.n_obs:
        warn(f"{adata.n_obs - kept.n_obs} of {adata.n_obs} cells are left out: no label (drop_missing) or no count (drop_empty_cells)")
    return kept


def setup_from(options: Namespace, path: str) -> Setup:
    """The declaration on the command line."""
    values = options.setup.as_dict()
    missing = [f"--setup.{name}" for name in ("perturbation_key", "control") if values[name] is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given; `counterflow doctor {path}` proposes a declaration")
    return Setup.from_dict(values)


def declare_and_split(adata: AnnData, setup: Setup, options: Namespace) -> tuple[Setup, Split | None]:
    """Verify the declaration, hold out what `--split` says, and return the declaration with the split in it."""
    declare(adata, setup)
    if options.split is None:
        if options.held_out is not None:
            raise ConfigError("--held_out needs --split: which kind of split is it?")
        return setup, None
    if setup.split_key is not None:
        raise ConfigError(f"--split and --setup.split_key={setup.split_key!r} exclude each other: give one of them")
    watched = bool(options.train.early_stopping)  # without it nobody looks at validation conditions: they are trained on
    split = find_split(adata, setup, options.split, options.held_out, options.split_seed, validation=watched)
    adata.obs[SPLIT_COLUMN] = split.labels(adata.obs)
    setup = replace(setup, split_key=SPLIT_COLUMN)
    declare(adata, setup)
    return setup, split


def find_split(adata: AnnData, setup: Setup, name: str, held_out: str | None, seed: int, *, validation: bool) -> Split:
    """A split by name, built on `adata` (with or without validation conditions), or from a file, checked against it."""
    from counterflow.data.split_file import Split
    from counterflow.data.splits import SPLITS, build_split

    if name.endswith(".json") or Path(name).is_file():
        if held_out is not None:
            raise ConfigError(f"--held_out has no meaning with a split file ({name})")
        split = Split.load(name)
        split.verify(adata.obs)
        return split
    if name not in SPLITS:
        raise ConfigError(f"no split is called {name!r}: {near(name, SPLITS)} A split file ends in .json.")
    arguments: dict[str, Any] = {} if validation else {"val_fraction": 0.0}
    if held_out is not None:
        arguments["level" if name in ("unseen_dose", "unseen_time") else "held_out"] = held_out
    return build_split(name, adata.obs, split_keys(setup), seed=seed, **arguments)


def split_keys(setup: Setup) -> Any:
    """The columns a split reads; contexts are the levels of `match_keys`, or of `covariate_keys` where nothing is matched."""
    from counterflow.data.split_file import Keys

    context = setup.match_keys or setup.covariate_keys
    return Keys(setup.perturbation_key, setup.control, setup.delimiter, context, setup.dose_key, setup.time_key)
