"""Saved models: a directory of safetensors and JSON. Nothing in it is ever executed or unpickled.

``weights.safetensors`` holds the network and the space, ``arrays.safetensors`` features, rule, reference controls and ledger, and
``model.json``, written last, names both with their sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterflow.errors import CheckpointError
from counterflow.migrations import ADDED, brought_up_to_date

if TYPE_CHECKING:
    from torch import Tensor  # a manifest is read without torch

FORMAT, SCHEMA, OLDEST = "counterflow-model", 4, 3
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
    "intervals",
    "reference",
    "training",
    "ledger",
    "files",
    "sha256",
}
_OBJECTS = ("config", "setup", "vocabulary", "trust", "reference", "training", "files")  # entries that are JSON objects
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
    partial = path.parent / f".{path.name}.tmp-{os.getpid()}"
    with or_the_free_space(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _mend(path)
        partial.mkdir()
    try:
        with or_the_free_space(path):
            save_weights({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}, partial / WEIGHTS)
            save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()}, partial / ARRAYS)
            files = {name: {"sha256": _sha256(partial / name), "bytes": (partial / name).stat().st_size} for name in (WEIGHTS, ARRAYS)}
            whole = signed({"format": FORMAT, "schema": SCHEMA, **manifest, "files": files})
            (partial / MANIFEST).write_text(json.dumps(whole, indent=1, sort_keys=True), encoding="utf-8")
            for name in (WEIGHTS, ARRAYS, MANIFEST):
                _fsync(partial / name)
            _fsync(partial)
            _replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Replace a file by a whole new one, or leave it as it was."""
    partial = path.with_name(f".{path.name}.tmp")  # a fixed name: what a killed run left is replaced by the next
    with or_the_free_space(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(partial, path)
            _fsync(path.parent)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def or_the_free_space(path: Path) -> Iterator[None]:
    """What the disk refuses is an error that names the path and the free space."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        place = next(folder for folder in path.absolute().parents if folder.is_dir())
        free = shutil.disk_usage(place).free / 1e6
        kept = "; what was there before is kept" if path.exists() else ""
        raise CheckpointError(f"cannot write {os.fspath(path)!r}: {why} ({free:,.0f} MB are free there){kept}") from None


def _set_aside(path: Path) -> Iterator[Path]:
    """Whole models that a killed replacement of `path` had moved out of the way."""
    yield from (left for left in sorted(path.parent.glob(f".{path.name}.old-*")) if (left / MANIFEST).is_file())


def _mend(path: Path) -> None:
    """Put back what a killed replacement set aside, and clear away what it left."""
    if not path.exists():
        for old in _set_aside(path):
            os.replace(old, path)
            break
    for kind in ("tmp", "old"):
        for left in path.parent.glob(f".{path.name}.{kind}-*"):
            if not _is_running(left.name.rpartition("-")[2]):
                shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """Whether another process of that number lives; a number like ours is of somebody before us."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _replace(new: Path, path: Path) -> None:
    old = path.parent / f".{path.name}.old-{os.getpid()}"
    if path.exists():
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    _fsync(path.parent)
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
    for candidate in (root, root / "model"):
        for old in _set_aside(candidate):
            return old
    raise CheckpointError(f"{os.fspath(path)!r} holds no model ({MANIFEST} not found): give a run directory or a saved model")


def keys_of(schema: int) -> set[str]:
    """The entries of a ``model.json`` of this schema."""
    return KEYS - {name for later, names in ADDED.items() if later > schema for name in names}


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the sha256 of all of its other entries: a copy that lost a bit on its way is found, however it is laid out."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return {**rest, "sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked ``model.json``."""
    file = model_dir(path) / MANIFEST
    shown = repr(os.fspath(file))
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise CheckpointError(f"{shown} is not valid JSON ({error}): the file is damaged") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {shown}: {error.strerror}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{shown} is not a {FORMAT} file")
    if type(manifest.get("schema")) is not int or manifest["schema"] > SCHEMA:
        raise CheckpointError(
            f"this model was written by counterflow {manifest.get('package_version')} (schema {manifest.get('schema')}): upgrade"
        )
    if manifest["schema"] < OLDEST:  # of development versions only
        raise CheckpointError(f"this model was written by a version before the first release (schema {manifest['schema']}): fit it again")
    if set(manifest) != keys_of(manifest["schema"]):
        odd = sorted(set(manifest) ^ keys_of(manifest["schema"]))
        raise CheckpointError(f"{shown} has unknown or missing entries: {', '.join(odd)}")
    try:
        same = signed(manifest)["sha256"] == manifest["sha256"]
    except UnicodeEncodeError:  # half a character
        same = False
    if not same:
        raise CheckpointError(f"{shown} does not have the sha256 that it names: the file is damaged or was changed")
    for name in _OBJECTS:
        if not isinstance(manifest[name], dict):
            raise CheckpointError(f"{name!r} in {shown} is not an object: the file was changed")
    return brought_up_to_date(manifest)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, np.ndarray]]:
    """Manifest, weights and arrays, each file checked against its sha256."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file as load_arrays
    from safetensors.torch import load_file as load_weights

    root, manifest = model_dir(path), read_manifest(path)
    if set(manifest["files"]) != {WEIGHTS, ARRAYS}:
        raise CheckpointError(f"{MANIFEST} in {os.fspath(root)!r} names files that no model has: the file was changed")
    for name in (WEIGHTS, ARRAYS):
        file, named = root / name, manifest["files"].get(name)
        if not file.is_file():
            raise CheckpointError(f"{os.fspath(file)!r} is missing: copy the whole model directory")
        if not isinstance(named, dict) or _sha256(file) != named.get("sha256"):
            raise CheckpointError(f"{os.fspath(file)!r} does not have the sha256 that {MANIFEST} gives: the file is damaged or was changed")
    try:
        return manifest, load_weights(root / WEIGHTS), load_arrays(root / ARRAYS)
    except (
        SafetensorError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise CheckpointError(f"{os.fspath(root)!r} holds a damaged safetensors file: {error}") from None
