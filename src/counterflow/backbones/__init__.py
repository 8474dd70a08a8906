"""The networks by name, and `build`, which also takes your own."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from counterflow.errors import ConfigError, near

BACKBONES: dict[str, str | Callable[..., nn.Module]] = {  # an import string is imported only when it is built
    "mlp": "counterflow.backbones.mlp:mlp",
    "dit": "counterflow.backbones.dit:dit",
    "set": "counterflow.backbones.set:set_attention",
    "ssm": "counterflow.backbones.ssm:ssm",
    "longconv": "counterflow.backbones.longconv:longconv",
    "hybrid": "counterflow.backbones.hybrid:hybrid",
    "dynamics": "counterflow.backbones.dynamics:Dynamics",
    "image_dit": "counterflow.backbones.image_dit:image_dit",
}
# what `train` takes by default (benchmarks/search_backbones.py; longconv and hybrid as the others)
LEARNING_RATES = {"mlp": 1e-3, **dict.fromkeys(("dit", "set", "ssm", "longconv", "hybrid"), 3e-3)}
DEFAULT_LEARNING_RATE = 1e-3  # of all others


def build(
    backbone: str | Callable[..., nn.Module] | nn.Module,
    state_shape: tuple[int, ...],
    condition_dim: int,
    *,
    conditioning: str = "adaln",
    feature_order: Int[Tensor, "s"] | None = None,
    trust_packages: Collection[str] | None = None,
    **backbone_kwargs: Any,
) -> nn.Module:
    """Make a backbone from its name, from an import string, from a class or factory, or take a module as it is.

    Your own class needs `__init__(state_shape, condition_dim, ...)` and `forward(x, t, condition)`, nothing from here.

    Parameters
    ----------
    backbone
        A name in `BACKBONES`, an import string `"package.module:Name"`, a callable, or a ready module.
    state_shape
        Shape of one cell's state.
    condition_dim
        Width of the condition.
    conditioning
        How the backbone listens to the condition; handed on if it takes such an argument.
    feature_order
        A permutation of the features; handed on if the backbone takes such an argument.
    trust_packages
        If given, import strings are followed only into these packages: for names that come out of a file. None trusts the caller.
    **backbone_kwargs
        Handed on to the backbone.

    Raises
    ------
    ConfigError
        If the name or a keyword is unknown, the import fails or is not trusted, or the conditioning is not one the backbone can do.

    Examples
    --------
    >>> build("mlp", (50,), condition_dim=128, size="B")  # doctest: +SKIP
    >>> build("mylab.retnet:RetNet", (50,), condition_dim=128, depth=6)  # doctest: +SKIP
    """
    if isinstance(backbone, nn.Module):
        given = [*backbone_kwargs, *(["conditioning"] if conditioning != "adaln" else [])]
        if given:
            raise ConfigError(
                f"a ready module takes no more arguments, got {', '.join(given)}: pass its class instead, or build it with them"
            )
        return backbone
    make = resolve(backbone, trust_packages)
    label = backbone if isinstance(backbone, str) else getattr(make, "__name__", repr(make))
    arguments = fitting_arguments(label, make, conditioning, feature_order, backbone_kwargs)
    module = make(state_shape, condition_dim, **arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"backbone {label!r} made a {type(module).__name__}, not a torch.nn.Module")
    return module


def resolve(backbone: str | Callable[..., nn.Module], trust_packages: Collection[str] | None = None) -> Callable[..., nn.Module]:
    """The callable behind a name or an import string."""
    if not isinstance(backbone, str):
        if not callable(backbone):
            raise ConfigError(f"a backbone is a name, 'package.module:Name', a class, a factory or a module, not {backbone!r}")
        return backbone
    if backbone in BACKBONES:
        known = BACKBONES[backbone]
        return import_string(known) if isinstance(known, str) else known
    module_name, colon, _ = backbone.partition(":")
    if not colon:
        raise ConfigError(f"no backbone {backbone!r}: {near(backbone, BACKBONES)} Your own goes by 'package.module:Name'.")
    if trust_packages is not None and not any(f"{module_name}.".startswith(f"{package}.") for package in trust_packages):
        raise ConfigError(
            f"{backbone!r} would run code of {module_name!r}: if you trust it, pass trust_packages=[{module_name.split('.')[0]!r}]"
        )
    return import_string(backbone)


def learning_rate(backbone: str | Callable[..., nn.Module] | nn.Module) -> float:
    """The default learning rate of a backbone."""
    return LEARNING_RATES.get(backbone, DEFAULT_LEARNING_RATE) if isinstance(backbone, str) else DEFAULT_LEARNING_RATE


def import_string(path: str) -> Callable[..., nn.Module]:
    """The callable `Name` of `"package.module:Name"`."""
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module was found; something that it imports was not
        advice = f"install it, or name the folder that holds it: PYTHONPATH={_folder_of(error.name)} counterflow ..."
        raise ConfigError(f"cannot import {path!r}: there is no module {error.name!r} on the Python path; {advice}") from error
    found = getattr(module, name, None)
    if not callable(found):
        public = [known for known in vars(module) if not known.startswith("_")]
        raise ConfigError(f"cannot import {path!r}: {module_name!r} has no class or function {name!r}; {near(name, public)}")
    return found


def _folder_of(module_name: str) -> str:
    """`.` where the module lies in the current folder, which a command does not look into by itself."""
    name = module_name.split(".")[0]
    return "." if Path(f"{name}.py").is_file() or Path(name).is_dir() else "/its/folder"


def reads_order(backbone: str | Callable[..., nn.Module] | nn.Module) -> bool:
    """Whether the backbone takes a `feature_order`, which is costly to find for many features."""
    return not isinstance(backbone, nn.Module) and "feature_order" in inspect.signature(resolve(backbone)).parameters


def reads_courses(backbone: str | Callable[..., nn.Module] | nn.Module) -> bool:
    """Whether the backbone reads how effects grew over time or dose (an attribute ``reads_courses = True``)."""
    return bool(getattr(backbone if isinstance(backbone, nn.Module) else resolve(backbone), "reads_courses", False))


def fitting_arguments(
    label: str,
    make: Callable[..., nn.Module],
    conditioning: str,
    feature_order: Int[Tensor, "s"] | None,
    backbone_kwargs: dict[str, Any],
) -> dict[str, Any]:
    """The keyword arguments for `make`: the user's, plus `conditioning` and `feature_order` where it takes them."""
    try:
        parameters = list(inspect.signature(make).parameters.values())[2:]  # after state_shape and condition_dim
    except ValueError as error:
        raise ConfigError(f"backbone {label!r} has no signature, so it cannot be one of Python's own types") from error
    accepted = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)

    for name in backbone_kwargs:
        if name not in accepted and not takes_any:
            raise ConfigError(f"backbone {label!r} takes no argument {name!r}: {near(name, accepted)} It takes: {', '.join(accepted)}")
    arguments = dict(backbone_kwargs)
    if "conditioning" in accepted or (takes_any and conditioning != "adaln"):
        arguments["conditioning"] = conditioning
    elif conditioning != "adaln":
        raise ConfigError(f"backbone {label!r} does not take conditioning={conditioning!r}: it has one way of its own")
    if "feature_order" in accepted and feature_order is not None:
        arguments["feature_order"] = feature_order
    missing = [p.name for p in parameters if p.name in accepted and p.default is p.empty and p.name not in arguments]
    if missing:
        raise ConfigError(f"backbone {label!r} needs {', '.join(missing)}: pass them in backbone_kwargs")
    return arguments
