"""Who takes part in a comparison: a backbone in a space (``mlp/pca``), or a recipe, a YAML file with the options of a whole model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterflow import backbones, spaces
from counterflow.errors import ConfigError, near
from counterflow.model import CounterFlow

SECTIONS = ("about", "model", "train", "predict")
SET_BY_THE_COMPARISON = {
    "model": ("adata", "seed"),
    "train": ("max_steps", "max_seconds", "max_epochs", "run_dir", "resume_from"),
    "predict": ("adata", "conditions"),
}


@dataclass(frozen=True)
class Contender:
    """A name and the options of `CounterFlow`, `CounterFlow.train` and `CounterFlow.predict` that go with it.

    A recipe's own options come before those that a comparison gives to all; its length and seed are those of the comparison.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    predict: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    @classmethod
    def of(cls, what: str) -> Contender:
        """From ``backbone/space`` or the path of a recipe.

        Raises
        ------
        ConfigError
            If there is no such backbone, space or file, or a recipe has a section or option that does not exist.
        """
        if what.endswith((".yaml", ".yml")):
            return cls._from_file(Path(what))
        backbone, slash, space = what.rpartition("/")
        if not (backbone and slash and space):
            raise ConfigError(f"a model is written backbone/space, for example mlp/pca, or is a recipe (.yaml); got {what!r}")
        backbones.resolve(backbone)
        if space not in spaces.SPACES:
            raise ConfigError(f"{what!r}: no space is called {space!r}: {near(space, spaces.SPACES)}")
        return cls(what, {"backbone": backbone, "space": space})

    @classmethod
    def _from_file(cls, path: Path) -> Contender:
        import yaml

        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"the recipe {str(path)!r} is not YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise ConfigError(f"the recipe {str(path)!r} has no section 'model' with the options of a model")
        for section, options in content.items():
            if section not in SECTIONS:
                raise ConfigError(f"the recipe {str(path)!r} has a section {section!r}: {near(str(section), SECTIONS)}")
            if section != "about":
                _check(path, section, options)
        return cls(path.stem, **{name: content[name] for name in SECTIONS if name in content})

    def __str__(self) -> str:
        return self.name


def _check(path: Path, section: str, options: object) -> None:
    """The options of a section are arguments of the method it goes to."""
    methods: dict[str, Callable[..., Any]] = {"model": CounterFlow, "train": CounterFlow.train, "predict": CounterFlow.predict}
    ours = SET_BY_THE_COMPARISON[section]
    known = [name for name, p in inspect.signature(methods[section]).parameters.items() if p.kind is not p.VAR_KEYWORD and name != "self"]
    if not isinstance(options, dict):
        raise ConfigError(f"the section {section!r} of the recipe {str(path)!r} is no list of options, such as {known[1]}: ...")
    for name in options:
        if name in ours:
            raise ConfigError(f"the recipe {str(path)!r} sets {section}.{name}, which is the comparison's to set: leave it out")
        if name not in known:
            raise ConfigError(f"the recipe {str(path)!r} has an option {section}.{name}: {near(str(name), known)}")
