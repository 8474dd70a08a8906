"""A run directory: everything needed to understand, repeat, resume and use one fit.

::

    config.yaml    the resolved options: `counterflow fit --config RUN/config.yaml` fits the same model
    run.json       options, versions, device, threads, seeds, fingerprint of the data, hash of the split: what `counterflow replay` compares
    split.json     which conditions were held out
    metrics.csv    the log of training        checkpoints/   for resuming this run        model/   the result, for sharing
    report.html    the verdict on held-out conditions, what the model learnt from, and how to make it again
    sample.json    a few predictions of the model, to be made again by `counterflow replay RUN --sample`

A run that is killed leaves a directory that can be resumed: every file is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from counterflow.checkpoint import write_whole
from counterflow.data.alone import alone
from counterflow.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

from counterflow.data.schema import Setup

PACKAGES = ("torch", "lightning", "scvi-tools", "scanpy", "anndata", "numpy", "scipy")

_WHERE = ("train.devices", "train.num_nodes", "train.strategy", "train.logger")


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run; nothing is written before `start`."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved options."""
        return self.path / "config.yaml"

    @property
    def facts(self) -> Path:
        """What the run was made with."""
        return self.path / "run.json"

    @property
    def split(self) -> Path:
        """What was held out."""
        return self.path / "split.json"

    @property
    def sample(self) -> Path:
        """What the model predicts of a few conditions."""
        return self.path / "sample.json"

    @property
    def report(self) -> Path:
        """The fit, for people to read."""
        return self.path / "report.html"

    @property
    def metrics(self) -> Path:
        """The log of training."""
        return self.path / "metrics.csv"

    @property
    def checkpoint(self) -> Path:
        """The newest state of training."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def model(self) -> Path:
        """The fitted model."""
        return self.path / "model"

    @property
    def is_complete(self) -> bool:
        """Whether the model was written."""
        return (self.model / "model.json").is_file()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse to mix two runs: a directory that holds anything is resumed or overwritten on request only."""
        shown = repr(os.fspath(self.path))
        if resume and overwrite:
            raise ConfigError("--resume and --overwrite exclude each other: the first goes on, the second starts anew")
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{shown} is a file: give a directory for the run")
        taken = self.path.is_dir() and any(self.path.iterdir())
        if resume and not self.config.is_file():
            raise ConfigError(f"nothing to resume in {shown}: it holds no run (config.yaml is not there)")
        if taken and not self.config.is_file():
            raise ConfigError(f"{shown} holds something that is not a run of counterflow: give another directory")
        if taken and not (resume or overwrite):
            state = "a finished run" if self.is_complete else "an unfinished run"
            raise ConfigError(
                f"{shown} already holds {state}: give another --out, or --resume to go on with it, or --overwrite to replace it"
            )

    def start(self, config: Mapping[str, Any], facts: Mapping[str, Any], split: str | None, *, overwrite: bool = False) -> None:
        """Put a new run here, complete with all that is known before training; `overwrite` what is there."""
        place = self.path.resolve()
        new, old = (place.parent / f".{place.name}.{kind}-{os.getpid()}" for kind in ("new", "old"))
        try:
            for left in (new, old):  # of a killed process of the same number
                shutil.rmtree(left, ignore_errors=True)
            new.mkdir(parents=True)
            fresh = RunDirectory(new)
            if split is not None:
                fresh.write_split(split)
            fresh.write_facts(facts)
            write_whole(fresh.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode())
            if overwrite and place.is_dir():
                os.replace(place, old)
            os.replace(new, place)  # fails where another process has begun a run in the meantime
        except (OSError, CheckpointError) as error:
            shutil.rmtree(new, ignore_errors=True)
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(f"cannot write to {os.fspath(self.path)!r}: {why}") from None
        shutil.rmtree(old, ignore_errors=True)

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_whole(self.facts, (json.dumps(dict(facts), indent=1) + "\n").encode())

    def write_split(self, split: str) -> None:
        """Replace split.json."""
        write_whole(self.split, (split + "\n").encode())

    def read_facts(self) -> dict[str, Any]:
        """The content of run.json."""
        return self._read(self.facts, json.loads, ("data", "versions"))

    def data_path(self) -> str:
        """Where the screen of the run was, by run.json."""
        path = self.read_facts()["data"].get("path")
        if not isinstance(path, str):
            raise ConfigError(f"{os.fspath(self.facts)!r} does not say what the run was fitted on: give the FILE")
        return path

    def read_config(self) -> dict[str, Any]:
        """The content of config.yaml."""
        return self._read(self.config, yaml.safe_load, ())

    def _read(self, file: Path, parse: Callable[[str], Any], needed: Sequence[str]) -> dict[str, Any]:
        if not file.is_file():
            raise ConfigError(f"{os.fspath(self.path)!r} holds no whole run ({file.name} is not there)")
        try:
            content = parse(file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            raise ConfigError(f"{os.fspath(file)!r} is damaged: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict) or any(not isinstance(content.get(name), dict) for name in needed):
            raise ConfigError(f"{os.fspath(file)!r} is not what counterflow writes: {', '.join(needed) or 'sections'} missing")
        return content

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time works on a run; the claim ends with the process, however that ends."""
        with alone(self.path, ConfigError(f"another process is working on {os.fspath(self.path)!r}: wait for it, or give another --out")):
            yield

    def check_same(self, config: Mapping[str, Any], facts: Mapping[str, Any], *, force_data: bool = False) -> dict[str, Any]:
        """A resumed run must have the options, the data and the split it was started with; returns what is to be kept of changes.

        Devices (the result is the same, but for the last digits) and loggers may be others.
        """
        changed = [name for name in differences(self.read_config(), config) if name not in _WHERE]
        if changed:
            raise ConfigError(
                f"this run was started with other options ({', '.join(changed[:5])}): resume it with --config {os.fspath(self.config)}, "
                "or start anew with --overwrite"
            )
        before = self.read_facts()
        if before["data"].get("sha256") != facts["data"]["sha256"]:
            if not force_data:
                raise DataError(
                    f"the data changed since this run was started ({before['data'].get('path')}): start anew with --overwrite, "
                    "or go on with --force_data"
                )
            earlier = before.get("data_before", [])
            return {"data_before": [*(earlier if isinstance(earlier, list) else []), before["data"]]}
        if before.get("split_hash") != facts["split_hash"]:
            raise DataError("the split changed since this run was started: start anew with --overwrite")
        return {"data_before": before["data_before"]} if "data_before" in before else {}

    def drop_parts(self) -> None:
        """Remove the states of fits that are part of a finished one."""
        for file in self.checkpoint.parent.glob("part-*.ckpt"):
            file.unlink()

    def drop_if_empty(self) -> None:
        """Remove a run that failed before its first checkpoint, so that the corrected command can be given at once."""
        if not self.checkpoint.exists() and not self.is_complete:
            shutil.rmtree(self.path, ignore_errors=True)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the options whose values differ."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}")
    return found


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    from counterflow import __version__

    found = {"python": platform.python_version(), "counterflow": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint(adata: AnnData, setup: Setup, path: str) -> dict[str, Any]:
    """What identifies the data of a run: declared columns, names, and the sums over cells and genes (cheap; not every value)."""
    from counterflow.data.labels import texts
    from counterflow.data.screen import read_counts
    from counterflow.data.source import batches

    digest = hashlib.sha256(json.dumps([list(map(str, adata.var_names)), sorted(setup.obs_keys)]).encode())
    obs = pd.DataFrame({key: texts(adata.obs[key]).to_numpy() for key in setup.obs_keys}, index=adata.obs.index)
    digest.update(pd.util.hash_pandas_object(obs, index=True).to_numpy().tobytes())
    counts, _ = read_counts(adata, setup)
    of_cells, of_genes = np.zeros(counts.shape[0]), np.zeros(counts.shape[1])
    for rows in batches(counts):
        block = counts[rows].astype(np.float64)
        of_cells[rows] = np.asarray(block.sum(1)).ravel()
        of_genes += np.asarray(block.sum(0)).ravel()  # of whole numbers: the same in any order
    digest.update(of_cells.data)
    digest.update(of_genes.data)
    file = Path(path)
    size = file.stat().st_size if file.is_file() else 0
    return {"path": path, "bytes": size, "cells": adata.n_obs, "genes": adata.n_vars, "sha256": digest.hexdigest()}
