"""Damaged texts of a run: split file, config, run.json, sample.json, and the state of training that a run is resumed from."""

import copy
import hashlib
import io
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import fuzz_bytes
import numpy as np
import yaml

FILES = ("split.json", "config.yaml", "run.json", "sample.json", "checkpoints/last.ckpt")
FIT = (
    "--setup.perturbation_key", "perturbation", "--setup.control", "control", "--split", "unseen_combination", "--quiet",
    "--train.max_steps", "3", "--train.batch_size", "32", "--train.set_size", "16", "--model.space_kwargs.n_components", "4",
    "--model.backbone_kwargs.width", "8", "--model.backbone_kwargs.depth", "1", "--model.anchor", "none", "--model.keep_controls", "5",
)  # fmt: skip
ODD = (
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    "",
    "x",
    "../../etc/passwd",
    [],
    {},
    [None],
    {"x": 1},
    [["x"]],
    "os:system",
    "2020-01-01",
    "a" * 5000,
)


@lru_cache(maxsize=1)
def screen() -> Any:
    """The cells of the run."""
    from counterflow import simulate_screen

    size = {"n_genes": 20, "n_perturbations": 3, "n_pairs": 3, "cells_control": 90, "cells_per_condition": 20, "n_cell_types": 1}
    return simulate_screen(**size, seed=1).adata


def prepare(folder: Path) -> None:
    """A run."""
    from counterflow.cli import main

    screen().write_h5ad(folder / "screen.h5ad")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        if main(["fit", str(folder / "screen.h5ad"), *FIT, "--out", str(folder / "run")]) != 0:
            raise SystemExit("the run could not be made")


def attempt(file: Path) -> str:
    """Read one file of a run the way its readers do; a digest of what they learn."""
    from counterflow.cli import fit, main
    from counterflow.cli.parser import config_names
    from counterflow.cli.screen import setup_from
    from counterflow.data.split_file import Split
    from counterflow.errors import ConfigError
    from counterflow.replay import what_changed
    from counterflow.resuming import planned_steps, read_state
    from counterflow.run import RunDirectory, versions

    run = RunDirectory(next(folder for folder in file.parents if folder.name == "run"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if file.name == "split.json":
            split = Split.load(file)
            split.verify(screen().obs)
            return "".join(split.labels(screen().obs))
        if file.name == "config.yaml":
            config_names(str(file))
            options, _ = fit.parser().parse(["--config", str(file)])
            setup_from(options, "screen.h5ad")
            return json.dumps([options.as_dict(), run.read_config()], default=str, sort_keys=True)
        if file.name == "run.json":
            facts = run.read_facts()
            same = run.check_same(run.read_config(), json.loads(SOUND[0]))
            again = what_changed(facts, {"versions": versions(), "device": "cpu", "threads": 1})
            return json.dumps([facts, same, again], sort_keys=True)
        if file.name == "sample.json":
            said = io.StringIO()
            with redirect_stdout(io.StringIO()) as out, redirect_stderr(said):
                code = main(["replay", str(run.path), "--sample", "--json"])
            if "internal error" in said.getvalue():
                raise AssertionError(said.getvalue().splitlines()[0])
            if code == 2:
                raise ConfigError(said.getvalue())
            return str(json.loads(out.getvalue())["outcome"])  # "different" is what a replay is for
        state = read_state(file, None, force_data=True)
        planned_steps(file)
        digest = hashlib.sha256()
        _digest(state, digest)
        return digest.hexdigest()


def _digest(value: Any, digest: Any) -> None:
    import torch

    if isinstance(value, dict):
        for key, inner in value.items():
            digest.update(repr(key).encode())
            _digest(inner, digest)
    elif isinstance(value, list | tuple):
        for inner in value:
            _digest(inner, digest)
    elif isinstance(value, torch.Tensor):
        digest.update(value.contiguous().numpy().tobytes())
    else:
        digest.update(repr(value).encode())


SOUND: list[str] = []


def originals(base: Path) -> dict[str, str]:
    """What the readers learn from the sound files."""
    SOUND[:] = [(base / "run" / "run.json").read_text()]
    return {name: attempt(base / "run" / name) for name in FILES}


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        found += _places(below, (*path, key))
    return found


def contents(rng: np.random.Generator, file: Path) -> None:
    """A value replaced, dropped, doubled or renamed."""
    is_yaml = file.suffix == ".yaml"
    content = yaml.safe_load(file.read_text()) if is_yaml else json.loads(file.read_text())
    *above, last = _pick(rng, _places(content))
    holder = content
    for key in above:
        holder = holder[key]
    what = int(rng.integers(5))
    if what == 0:
        del holder[last]
    elif what == 1 and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    elif what == 2:
        holder[last] = [copy.deepcopy(holder[last])]
    else:
        holder[last] = copy.deepcopy(_pick(rng, ODD))
    if rng.random() < 0.02:
        content = _pick(rng, ODD)
    file.write_text(yaml.safe_dump(content) if is_yaml else json.dumps(content), encoding="utf-8")


def no_text(rng: np.random.Generator, file: Path) -> None:
    """What no parser may choke on."""
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    odd = ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", "null", "[]", "3", '"x"', "NaN", '{"a": 1e999}', "\x00", "\ufeff{}",
           "a: b: c", "- " * 20_000,
           "!!python/object/apply:os.system ['true']", "setup: !!python/name:os.system", "{? [a]: b}", "1: {2: 3}", "a: &x [*x]", bomb,
           "setup: {perturbation_key: {a: b}}", "data: [1, 2]", "model: 3"]  # fmt: skip
    if rng.random() < 0.3:
        file.write_bytes(_pick(rng, [pickle.dumps({"a": 1}), b"\xff\xfe" + b"a" * 50, b"PK\x03\x04" + rng.bytes(500), rng.bytes(2000)]))
    else:
        file.write_text(_pick(rng, odd), encoding="utf-8")


def state(rng: np.random.Generator, file: Path) -> None:
    """A state of training with other content."""
    import torch

    content = torch.load(file, weights_only=True)
    key = _pick(rng, list(content))
    if rng.random() < 0.3:
        del content[key]
    else:
        content[key] = _pick(rng, [None, -1, "x", [], {}, torch.zeros(2), {"x": torch.ones(1)}, 1e9])
    torch.save(_pick(rng, [content, content, content, [], 3, "x", None]), file)


KINDS: dict[str, tuple[str, Callable]] = {
    **{f"{name}: {kind}": (name, change) for name in FILES for kind, change in fuzz_bytes.KINDS.items()},
    **{f"changed {name}": (name, contents) for name in FILES[:4]},
    **{f"no text: {name}": (name, no_text) for name in FILES},
    "changed state of training": (FILES[4], state),
}
OFTEN = dict.fromkeys((kind for kind in KINDS if kind.startswith(("changed", "no text"))), 5)
FREE_TO_DIFFER = frozenset(kind for kind in KINDS if not kind.startswith("checkpoints"))
NOTES = """These are texts that people read and edit, without a checksum: *another* is what a changed text says, read as it is. The
model of a run does not depend on them; `counterflow replay` compares them with what comes out."""
KNOWN: frozenset[tuple[str, str]] = frozenset()


def mutate(kind: str, rng: np.random.Generator, base: Path, scratch: Path) -> tuple[Path, str]:
    """A run with one damaged file, and the name of the file."""
    name, change = KINDS[kind]
    shutil.copytree(base / "run", scratch / "run")
    change(rng, scratch / "run" / name)
    return scratch / "run" / name, name
