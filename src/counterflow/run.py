"""A run directory: everything needed to understand, repeat, resume and use one fit.

::

    config.yaml    the resolved options: `counterflow fit --config RUN/config.yaml` fits the same model
    run.json       versions, device, threads, seeds, fingerprint of the data, hash of the split
    split.json     which conditions were held out
    metrics.csv    the log of training        checkpoints/   for resuming this run        model/   the result, for sharing
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml

from counterflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

    from counterflow.data.schema import Setup

PACKAGES = ("torch", "lightning", "scvi-tools", "scanpy", "anndata", "numpy", "scipy")


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

    def start(self, config: Mapping[str, Any], facts: Mapping[str, Any], split: str | None) -> None:
        """Create the directory anew and write what is known before training."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        try:
            self.path.mkdir(parents=True)
            self.config.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")
            self.write_facts(facts)
            if split is not None:
                self.split.write_text(split + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write to {os.fspath(self.path)!r}: {error.strerror}") from None

    def write_facts(self, facts: Mapping[str, Any]) -> None:
        """Replace run.json."""
        self.facts.write_text(json.dumps(dict(facts), indent=1) + "\n", encoding="utf-8")

    def check_same(self, config: Mapping[str, Any], facts: Mapping[str, Any], *, force_data: bool = False) -> dict[str, Any]:
        """A resumed run must have the options, the data and the split it was started with; returns what is to be kept of changes."""
        changed = _differences(yaml.safe_load(self.config.read_text(encoding="utf-8")), config)
        if changed:
            raise ConfigError(
                f"this run was started with other options ({', '.join(changed[:5])}): resume it with --config {os.fspath(self.config)}, "
                "or start anew with --overwrite"
            )
        before = json.loads(self.facts.read_text(encoding="utf-8"))
        if before["data"]["sha256"] != facts["data"]["sha256"]:
            if not force_data:
                raise DataError(
                    f"the data changed since this run was started ({before['data']['path']}): start anew with --overwrite, "
                    "or go on with --force_data"
                )
            return {"data_before": [*before.get("data_before", []), before["data"]]}
        if before["split_hash"] != facts["split_hash"]:
            raise DataError("the split changed since this run was started: start anew with --overwrite")
        return {"data_before": before["data_before"]} if "data_before" in before else {}

    @contextmanager
    def keep_metrics(self, resuming: bool) -> Iterator[None]:
        """Lightning begins a new log when it resumes: put the rows of before the interruption in front again."""
        before = pd.read_csv(self.metrics) if resuming and self.metrics.is_file() and self.metrics.stat().st_size else None
        try:
            yield
        finally:
            if before is not None:
                after = pd.read_csv(self.metrics) if self.metrics.is_file() and self.metrics.stat().st_size else before.iloc[:0]
                first = after["step"].min() if len(after) else np.inf
                pd.concat([before[before["step"] < first], after]).to_csv(self.metrics, index=False)

    def drop_if_empty(self) -> None:
        """Remove a run that failed before its first checkpoint, so that the corrected command can be given at once."""
        if not self.checkpoint.exists() and not self.is_complete:
            shutil.rmtree(self.path, ignore_errors=True)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the options whose values differ."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        a, b = before.get(name), now.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
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
    from counterflow.data.matrix import as_csr

    digest = hashlib.sha256(json.dumps([list(map(str, adata.var_names)), sorted(setup.obs_keys)]).encode())
    obs = adata.obs[list(setup.obs_keys)].astype(str)
    digest.update(pd.util.hash_pandas_object(obs, index=True).to_numpy().tobytes())
    counts = as_csr(adata, setup.layer).astype(np.float64)
    for axis in (0, 1):
        digest.update(np.asarray(counts.sum(axis)).ravel().tobytes())
    file = Path(path)
    size = file.stat().st_size if file.is_file() else 0
    return {"path": path, "bytes": size, "cells": adata.n_obs, "genes": adata.n_vars, "sha256": digest.hexdigest()}
