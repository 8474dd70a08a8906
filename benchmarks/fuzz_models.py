"""Damaged and forged model directories: bytes of each file, and contents changed with every sha256 made right again."""

import copy
import json
import os
import pickle
import shutil
import struct
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_bytes
import numpy as np

from counterflow.checkpoint import SCHEMA

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / f"schema{SCHEMA}"
NAMES = ("pca_mlp", "pca_mlp", "raw_dit", "latent_mlp")  # as often as they are taken
WEIGHTS, ARRAYS, MANIFEST = "weights.safetensors", "arrays.safetensors", "model.json"


def prepare(folder: Path) -> None:
    """The sound models."""
    for name in set(NAMES):
        shutil.copytree(GOLDEN / name, folder / name)


def attempt(folder: Path) -> str:
    """Describe a model, load it and let it predict; a digest of all it says."""
    import hashlib

    import counterflow as cf
    from counterflow.checkpoint import read_manifest
    from counterflow.cli.info import describe

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = json.dumps(describe(read_manifest(folder)), sort_keys=True)
        model = cf.CounterFlow.load(folder)
        parts = [said.encode()]
        one, two = ORIGINAL[folder.name]
        for cells in (model.predict(conditions=[one, f"{one}+{two}"], n_cells=2, n_steps=1), model.generate(two, 2, n_steps=1)):
            if not np.isfinite(cells.layers["mean"]).all() or (cells.layers["counts"].data < 0).any():
                raise AssertionError("predicted cells hold values that are no counts")
            parts += [np.ascontiguousarray(cells.layers["mean"]).tobytes(), cells.layers["counts"].toarray().tobytes()]
        for stage, named in sorted(model.fitted_parts().items()):
            parts += [f"{stage}.{name}".encode() + np.ascontiguousarray(value).tobytes() for name, value in sorted(named.items())]
    return hashlib.sha256(b"|".join(parts)).hexdigest()


ORIGINAL: dict[str, tuple[str, str]] = {
    name: tuple(json.loads((GOLDEN / name / MANIFEST).read_text())["vocabulary"]["seen"][:2]) for name in set(NAMES)
}  # two perturbations that the sound model knows


def originals(base: Path) -> dict[str, str]:
    """What the sound models say."""
    return {name: attempt(base / name) for name in set(NAMES)}


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


# ---------------------------------------------------------------------- contents, signed anew


def _sign(folder: Path, manifest: dict[str, Any] | None = None) -> None:
    from counterflow.checkpoint import _sha256, signed

    manifest = json.loads((folder / MANIFEST).read_text()) if manifest is None else manifest
    for name in (WEIGHTS, ARRAYS):
        if isinstance(manifest.get("files"), dict) and isinstance(manifest["files"].get(name), dict):
            manifest["files"][name] = {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / MANIFEST).write_text(json.dumps(signed(manifest)), encoding="utf-8")


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a JSON document; of a long list, a few."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        for i in list(range(len(value)))[:4]:
            found += _places(value[i], (*path, i))
    return found


ODD = (
    None, True, False, 0, 1, -1, 2, 10**12, 2**63, -(2**70), 1.5, 1e308, -1e-300, "", "x", "control", "../../etc/passwd", "os:system",
    "a" * 10_000, "\x00", "\ud800", [], {}, [None], ["x", "x"], [[]], {"x": 1}, [1, 2, 3], "counterflow.backbones.mlp:mlp", "nan", "1e9",
)  # fmt: skip


def _edited(rng: np.random.Generator, folder: Path, change: Callable) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    section = _pick(rng, [*manifest, *["config", "setup", "vocabulary", "reference", "rule", "trust", "training", "ledger"] * 2])
    places = [(section, *path) for path in [(), *_places(manifest[section])]]
    *above, last = _pick(rng, places)
    holder = manifest
    for key in above:
        holder = holder[key]
    change(rng, holder, last)
    _sign(folder, manifest)


def _put(rng: np.random.Generator, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(_pick(rng, ODD))


def _drop(rng: np.random.Generator, holder: Any, key: Any) -> None:
    del rng, holder[key]


def _double(rng: np.random.Generator, holder: Any, key: Any) -> None:
    value = copy.deepcopy(holder[key])
    if isinstance(holder, list):
        holder.insert(int(rng.integers(len(holder) + 1)), value)
    else:
        holder[f"{key}2"] = value


def _retype(rng: np.random.Generator, holder: Any, key: Any) -> None:
    value = holder[key]
    options = [[value], {"value": value}, str(value), repr(value) * 3]
    if isinstance(value, int | float) and not isinstance(value, bool):
        options += [-value, value + 1, value * 1e6, float(value), value * 2]
    if isinstance(value, list):
        options += [value[::-1], value + value, value[:-1], dict(enumerate(map(str, value)))]
    if isinstance(value, dict):
        options += [list(value.items()), list(value), {key[::-1]: inner for key, inner in value.items()}]
    holder[key] = _pick(rng, options)


def _swap(rng: np.random.Generator, holder: Any, key: Any) -> None:
    other = _pick(rng, list(holder) if isinstance(holder, dict) else list(range(len(holder))))
    holder[key], holder[other] = holder[other], holder[key]


def larger(rng: np.random.Generator, folder: Path) -> None:
    """Options that ask for a huge network or space."""
    manifest = json.loads((folder / MANIFEST).read_text())
    config = manifest["config"]
    kwargs = config[_pick(rng, ["backbone_kwargs", "backbone_kwargs", "space_kwargs", "encoder_kwargs"])]
    name = _pick(rng, [*kwargs, "width", "depth"])
    kwargs[name] = _pick(rng, [10**5, 10**9, 10**12, 2**40, 10**18])
    _sign(folder, manifest)


def invalid_text(rng: np.random.Generator, folder: Path) -> None:
    """A model.json that is no JSON of ours."""
    text = (folder / MANIFEST).read_text()
    odd = [text.replace("1", "NaN", 1), text.replace(": 0", ": Infinity", 1), "[" * 100_000, '{"a":' * 50_000, "9" * 5000, text + text, "",
           text.replace(f'"schema": {SCHEMA}', '"schema": ' + "3" * 5000), "\ufeff" + text, text[::-1], "null"]  # fmt: skip
    (folder / MANIFEST).write_text(_pick(rng, odd), encoding="utf-8")


# ---------------------------------------------------------------------- safetensors


def _split(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def _join(file: Path, header: Any, body: bytes, size: int | None = None) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + body)


def header(rng: np.random.Generator, folder: Path) -> None:
    """A header that lies."""
    file = folder / _pick(rng, [WEIGHTS, ARRAYS])
    entries, body = _split(file)
    name = _pick(rng, [key for key in entries if key != "__metadata__"])
    entry, what = entries[name], int(rng.integers(10))
    size = None
    if what == 0:
        entry["dtype"] = _pick(rng, ["F64", "I64", "BF16", "F8_E4M3", "BOOL", "U8", "X", "", "F4", "U64", "I32", "F16"])
    elif what == 1:
        entry["shape"] = _pick(rng, [[], [0], [-1], [2**62, 4], [1, *entry["shape"]], entry["shape"][::-1], [10**30], "x", [1.5], None])
    elif what == 2:
        a, b = entry["data_offsets"]
        entry["data_offsets"] = _pick(rng, [[b, a], [a + 4, b + 4], [0, 2**63], [-4, b], [a, a], [a], "x", [a, len(body) + 8]])
    elif what == 3:
        del entries[name]
    elif what == 4:
        entries[name + "2"] = entries.pop(name)
    elif what == 5:
        entries[name + "2"] = entry
    elif what == 6:
        size = int(_pick(rng, [0, 1, 2**31, 2**63, 10**6]))
    elif what == 7:
        entries["__metadata__"] = _pick(rng, [{"a": 1}, [], "x", {"a": "b"}])
    elif what == 8:
        other = _pick(rng, [key for key in entries if key != "__metadata__"])
        entries[name], entries[other] = entries[other], entries[name]
    else:
        body = body[: len(body) // 2]
    _join(file, entries, body, size)
    _sign(folder)


def values(rng: np.random.Generator, folder: Path) -> None:
    """Numbers that no fit gives, in one array."""
    from safetensors.numpy import load_file, save_file

    file = folder / _pick(rng, [WEIGHTS, ARRAYS])
    arrays = {name: value.copy() for name, value in load_file(file).items()}
    name = _pick(rng, [name for name, value in arrays.items() if value.size])
    value = arrays[name]
    flat, where = value.reshape(-1), int(rng.integers(value.size))
    if value.dtype.kind == "f":
        flat[where] = _pick(rng, [np.nan, np.inf, -np.inf, -1e30, 3e38, -1.0])
    elif value.dtype.kind in "iu":
        info = np.iinfo(value.dtype)
        flat[where] = _pick(rng, [info.max, info.min, 10**6, flat[where - 1], 17])
    else:
        flat[where] = ~flat[where]
    how = int(rng.integers(6))
    if how == 0:
        arrays[name] = value[: len(value) // 2] if value.ndim else value.reshape(1)
    elif how == 1:
        arrays[name] = value.astype(_pick(rng, [np.float64, np.float16, np.int64, np.int8, bool]))
    elif how == 2:
        arrays[name] = np.ascontiguousarray(value.T) if value.ndim > 1 else np.concatenate([value.ravel(), value.ravel()])
    save_file(arrays, file)
    _sign(folder)


# ---------------------------------------------------------------------- files


def files(rng: np.random.Generator, folder: Path) -> None:
    """A file that is missing, empty, a folder, a pickle, another file, or no file at all."""
    name, what = _pick(rng, [WEIGHTS, ARRAYS, MANIFEST]), int(rng.integers(9))
    file = folder / name
    other = folder / _pick(rng, [WEIGHTS, ARRAYS, MANIFEST])
    if what == 0:
        file.unlink()
    elif what == 1:
        file.write_bytes(b"")
    elif what == 2:
        file.unlink()
        file.mkdir()
    elif what == 3:
        file.write_bytes(pickle.dumps({"weights": 1}))
    elif what == 4:
        file.write_bytes(other.read_bytes())
    elif what == 5:
        file.unlink()
        file.symlink_to(_pick(rng, ["/etc/passwd", "/dev/zero", "/dev/random", name, "/", "nowhere"]))
    elif what == 6:
        file.unlink()
        os.mkfifo(file)
    elif what == 7:
        file.write_bytes(b"PK\x03\x04" + rng.bytes(1000))
    else:
        file.write_bytes((GOLDEN / _pick(rng, sorted(ORIGINAL)) / name).read_bytes())


def _damaged(change: Callable, name: str, rng: np.random.Generator, folder: Path) -> None:
    change(rng, folder / name)


SIGNED: dict[str, Callable] = {
    "model.json: a value replaced": partial(_edited, change=_put),
    "model.json: an entry dropped": partial(_edited, change=_drop),
    "model.json: an entry twice": partial(_edited, change=_double),
    "model.json: a value of another kind": partial(_edited, change=_retype),
    "model.json: two values swapped": partial(_edited, change=_swap),
    "model.json: a huge network": larger,
    "safetensors: a header that lies": header,
    "safetensors: values that no fit gives": values,
}
KINDS: dict[str, Callable] = {
    **{f"{name}: {kind}": partial(_damaged, how, name) for name in (WEIGHTS, ARRAYS, MANIFEST) for kind, how in fuzz_bytes.KINDS.items()},
    "no JSON of ours": invalid_text,
    "files missing, empty, swapped, pickles, links": files,
    **{f"signed {kind}": change for kind, change in SIGNED.items()},
}
OFTEN = dict.fromkeys((kind for kind in KINDS if kind.startswith("signed")), 6)
FREE_TO_DIFFER = frozenset(kind for kind in KINDS if kind.startswith("signed"))
NOTES = "*signed*: every sha256 was made right again after the change, so that it is the reader's own checks that refuse."
KNOWN: frozenset[tuple[str, str]] = frozenset()


def mutate(kind: str, rng: np.random.Generator, base: Path, scratch: Path) -> tuple[Path, str]:
    """A damaged model, and the name of the sound one."""
    name = _pick(rng, NAMES)
    target = scratch / name
    shutil.copytree(base / name, target)
    KINDS[kind](rng, target)
    return target, name
