"""Saved models: a directory of safetensors and JSON. Nothing in it is ever executed or unpickled.

``weights.safetensors`` holds the network and the space, ``arrays.safetensors`` features, rule, reference controls and ledger, and
``model.json``, written last, names both with their sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterflow.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor  # a manifest is read without torch

FORMAT, SCHEMA = "counterflow-model", 3
KEYS = {
    "format",
    "schema",
    "package_version",
    "config",
    "setup",
    "genes",
    "vocabulary",
    "rule",
    "trust",
    "reference",
    "training",
    "ledger",
    "files",
}
WEIGHTS, ARRAYS, MANIFEST = "weights.safetensors", "arrays.safetensors", "model.json"


def write(
    path: Path, manifest: Mapping[str, Any], weights: Mapping[str, Tensor], arrays: Mapping[str, np.ndarray], *, overwrite: bool
) -> None:
    """Write a model directory; a directory that is already there stays whole until the new one is complete."""
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file as save_weights

    if path.exists() and not overwrite:
        raise CheckpointError(f"{os.fspath(path)!r} exists: give another directory, or overwrite=True")
    if path.exists() and not (path / MANIFEST).is_file() and (path.is_file() or any(path.iterdir())):
        raise CheckpointError(f"{os.fspath(path)!r} holds something that is not a saved model, and stays: give another directory")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.tmp-{os.getpid()}"
    partial.mkdir()
    try:
        save_weights({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, partial / WEIGHTS)
        save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()}, partial / ARRAYS)
        files = {name: {"sha256": _sha256(partial / name), "bytes": (partial / name).stat().st_size} for name in (WEIGHTS, ARRAYS)}
        text = json.dumps({"format": FORMAT, "schema": SCHEMA, **manifest, "files": files}, indent=1, sort_keys=True)
        (partial / MANIFEST).write_text(text, encoding="utf-8")
        for name in (WEIGHTS, ARRAYS, MANIFEST):
            _fsync(partial / name)
        _fsync(partial)
        _replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(new: Path, path: Path) -> None:
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    if path.exists():
        os.replace(path, old)
    os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def model_dir(path: str | os.PathLike[str]) -> Path:
    """The model directory at `path`, or inside a run directory at `path`."""
    root = Path(path)
    for candidate in (root, root / "model"):
        if (candidate / MANIFEST).is_file():
            return candidate
    raise CheckpointError(f"{os.fspath(path)!r} holds no model ({MANIFEST} not found): give a run directory or a saved model")


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked ``model.json``."""
    file = model_dir(path) / MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{os.fspath(file)!r} is not valid JSON ({error}): the file is damaged") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{os.fspath(file)!r} is not a {FORMAT} file")
    if not isinstance(manifest.get("schema"), int) or manifest["schema"] > SCHEMA:
        raise CheckpointError(
            f"this model was written by counterflow {manifest.get('package_version')} (schema {manifest.get('schema')}): upgrade"
        )
    if manifest["schema"] < SCHEMA:  # of development versions only
        raise CheckpointError(f"this model was written by a version before the first release (schema {manifest['schema']}): fit it again")
    if set(manifest) != KEYS:
        odd = sorted(set(manifest) ^ KEYS)
        raise CheckpointError(f"{os.fspath(file)!r} has unknown or missing entries: {', '.join(odd)}")
    return manifest


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, np.ndarray]]:
    """Manifest, weights and arrays, each file checked against its sha256."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file as load_arrays
    from safetensors.torch import load_file as load_weights

    root, manifest = model_dir(path), read_manifest(path)
    for name in (WEIGHTS, ARRAYS):
        file = root / name
        if not file.is_file():
            raise CheckpointError(f"{os.fspath(file)!r} is missing: copy the whole model directory")
        if _sha256(file) != manifest["files"].get(name, {}).get("sha256"):
            raise CheckpointError(f"{os.fspath(file)!r} does not have the sha256 that {MANIFEST} gives: the file is damaged or was changed")
    try:
        return manifest, load_weights(root / WEIGHTS), load_arrays(root / ARRAYS)
    except SafetensorError as error:
        raise CheckpointError(f"{os.fspath(root)!r} holds a damaged safetensors file: {error}") from None
