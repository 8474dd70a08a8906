"""Options of a verb. Sections (`setup`, `model`, `train`) are public calls: names, types, defaults and help come from their signatures.

Unknown names are looked for before jsonargparse sees them, so that the message can name the near match, and say where it is.
"""

from __future__ import annotations

import inspect
import os
import re
import types
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from counterflow.cli.terminal import Terminal
from counterflow.errors import ConfigError, near

_UNTYPEABLE = {"Any", "type", "Module", "DataFrame", "Callable", "PathLike"}  # parts of a type that nobody can type in a shell
_SCALARS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping", list: "a list", Path: "a path"}


class VerbParser:
    """The parser of one verb, with the options that all verbs have."""

    def __init__(self, verb: str, usage: str, about: str, example: str) -> None:
        text = f"{about}\n\nexample:\n{example}"
        self.verb = verb
        self.types: dict[str, Any] = {}
        self.flags: set[str] = set()  # options without a value
        self.parser = ArgumentParser(
            prog=f"counterflow {verb}", usage=f"counterflow {verb} {usage}", description=text, exit_on_error=False, allow_abbrev=False,
            formatter_class=_help_formatter(),
        )  # fmt: skip
        self._into: Any = self.parser.add_argument_group("of every verb")
        self.flag("json", "print the result as JSON, and nothing else")
        self.flag("quiet", "print nothing but errors")
        self.flag("verbose", "print more")
        self.flag("debug", "print the traceback of an error")
        self._into = self.parser

    def flag(self, name: str, about: str) -> None:
        """An option without a value."""
        self.flags.add(name)
        self.types[name] = bool
        self._into.add_argument(f"--{name}", action="store_true", help=about)

    def positional(self, name: str, about: str, *, optional: bool = False) -> None:
        """An argument without a name."""
        extra: dict[str, Any] = {"nargs": "?"} if optional else {}
        self.parser.add_argument(name, type=str, help=about, **extra)

    def option(self, name: str, kind: Any, default: Any, about: str, *, repeat: bool = False) -> None:
        """One named option."""
        self.types[name] = list if repeat else kind
        extra: dict[str, Any] = {"action": "append"} if repeat else {}
        self._into.add_argument(f"--{name}", type=kind, default=default, help=about, **extra)

    def config_file(self) -> None:
        """`--config FILE`; flags override what it says."""
        self.types["config"] = Path
        self.parser.add_argument("--config", action="config", help="a YAML file with these options; flags override it")

    def call(self, section: str, function: Callable, *, skip: Collection[str] = ()) -> None:
        """Every argument of `function`, as `--section.name` (or `--name` for the empty section)."""
        about, said = argument_help(function), dict[str, str]()
        self._into = self.parser.add_argument_group(f"{section}: the arguments of {called(function)}") if section else self.parser
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ("self", "adata", "conditions", *skip) or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            kind = shell_type(_hints(function).get(name, Any), optional=default is None)
            option, text = f"{section}.{name}" if section else name, about.get(name, "")
            text = f"see --{first}" if text and (first := said.setdefault(text, option)) != option else text
            self.option(option, kind, _plain(default), (text + (" (required)" if required else "")).strip())
        self._into = self.parser

    def parse(self, argv: Sequence[str]) -> tuple[Namespace, Terminal]:
        """The options, or ConfigError naming what is wrong with them."""
        argv = [self._with_underscores(word) for word in argv]
        for word in argv:
            if word.startswith("--"):
                self._check_flag(word)
        for path in _config_paths(argv):
            self._check_config(path)
        try:
            options = self.parser.parse_args(list(argv))
        except ArgumentError as error:
            raise ConfigError(self._explain(str(error))) from None
        return options, Terminal(as_json=options.json, quiet=options.quiet, verbose=options.verbose)

    def _with_underscores(self, word: str) -> str:
        """`--n-cells` is `--n_cells`."""
        name, equals, value = word.partition("=")
        known = name[2:].replace("-", "_")
        return f"--{known}{equals}{value}" if word.startswith("--") and not self._known(name[2:]) and self._known(known) else word

    def _check_flag(self, word: str) -> None:
        name = word[2:].split("=")[0].removesuffix("+")
        if name in ("help", "print_config") or self._known(name):
            return
        raise ConfigError(f"counterflow {self.verb} has no option --{name}: {_near_option(name, self.types)}")

    def _known(self, name: str) -> bool:
        """Whether `name` is an option, or an entry of one that holds a mapping."""
        if name in self.types:
            return True
        head = name.rpartition(".")[0]
        while head:
            if head in self.types:
                return _takes_mapping(self.types[head])
            head = head.rpartition(".")[0]
        return False

    def _check_config(self, path: str) -> None:
        for name in config_names(path):
            if self._known(name) and name not in ("config", "print_config", *self.flags):
                continue
            if any(known.startswith(f"{name}.") for known in self.types):
                raise ConfigError(f"{path}: {name!r} is a section and holds options, as in {name}: {{...}}")
            raise ConfigError(f"{path}: unknown key {name!r}: {_near_option(name, self.types)}")

    def _explain(self, message: str) -> str:
        key = re.search(r'Parser key "([^"]+)"', message)
        if key and key[1] in self.types and (value := re.search(r"(?:Given value|Got value): (.*)", message)):
            return f"{key[1]}={value[1].strip()!r} is not {readable(self.types[key[1]])}"
        if key and key[1] == "config":
            return message.split(":", 1)[1].strip()
        return f"counterflow {self.verb}: {message.splitlines()[0]}; see counterflow {self.verb} --help"


def _near_option(name: str, known: Collection[str]) -> str:
    """The options of the same last word, the near match of the whole name, or the options of the same section."""
    section, _, word = name.rpartition(".")
    same_word = [option for option in known if option.rpartition(".")[2] == word]
    if same_word:
        return "did you mean " + " or ".join(map(repr, same_word[:3])) + "?"
    if (hint := near(name, known)).startswith("did you mean"):
        return hint
    siblings = [option for option in known if section and option.startswith(f"{section}.")]
    if siblings:
        return near(word, [option.removeprefix(f"{section}.") for option in siblings])
    return hint


def _config_paths(argv: Sequence[str]) -> Iterator[str]:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            yield argv[i + 1]
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def config_names(path: str) -> list[str]:
    """Dotted names of every key in a YAML file, two levels deep: sections, and the options in them."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path!r}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path!r} is not a YAML file: it is not text") from None
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # the last two: numbers and nesting without end
        raise ConfigError(f"{path!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path!r} must hold sections such as setup: {{...}}, model: {{...}}; it holds {type(content).__name__}")
    names = []
    for section, values in content.items():
        names += [f"{section}.{name}" for name in values] if isinstance(values, dict) else [str(section)]
    return names


def shell_type(hint: Any, *, optional: bool = False) -> Any:
    """The part of a type hint that can be written on a command line; names may be one string or a list."""
    if get_origin(hint) in (Union, types.UnionType):
        members = [shell_type(member) for member in get_args(hint) if _typeable(member)]
        if not members:
            return Any
        return Union[tuple(dict.fromkeys([*members, *([type(None)] if optional else [])]))]  # noqa: UP007
    if get_origin(hint) in (Sequence, list):
        return list[str] | str
    if not _typeable(hint):
        return Any
    return Union[hint, None] if optional and hint is not Any else hint  # noqa: UP007


def _typeable(hint: Any) -> bool:
    return getattr(get_origin(hint) or hint, "__name__", str(hint)) not in _UNTYPEABLE


def _takes_mapping(kind: Any) -> bool:
    return kind is dict or get_origin(kind) is dict or any(_takes_mapping(member) for member in get_args(kind) if member is not Any)


def readable(kind: Any) -> str:
    """A type in words, for error messages."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if member is type(None) else readable(member) for member in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, get_args(kind)))
    return "a value" if kind is Any else _SCALARS.get(origin or kind, str(kind))


def _hints(function: Callable) -> dict[str, Any]:
    """Resolved annotations; names that only a type checker imports count as Any."""
    names: dict[str, Any] = {"AnnData": Any}
    return get_type_hints(function, localns=names)


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default


def argument_help(function: Callable) -> dict[str, str]:
    """Argument -> its line in the numpy docstring; "source, coupling" explains both. Constructors are documented by their class."""
    from docstring_parser import DocstringStyle, parse

    text = inspect.getdoc(_class_of(function) if function.__name__ == "__init__" else function) or ""
    found = {}
    for entry in parse(text, style=DocstringStyle.NUMPYDOC).params:
        line = " ".join((entry.description or "").replace("``", "").replace("`", "").split())
        found.update({name.strip(): line for name in entry.arg_name.split(",")})
    return found


def called(function: Callable) -> str:
    """`CounterFlow.train`; a constructor by its class."""
    return function.__qualname__.removesuffix(".__init__")


def _class_of(method: Callable) -> Any:
    module = inspect.getmodule(method)
    return getattr(module, method.__qualname__.split(".")[0])


def _help_formatter() -> Any:
    import argparse

    class Formatter(argparse.RawDescriptionHelpFormatter):
        """One short column; `%` in docstrings is text."""

        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=30, width=min(110, int(os.environ.get("COLUMNS", "110"))))

        def _expand_help(self, action: argparse.Action) -> str:
            text = (action.help or "").strip()
            shown = action.default not in (None, argparse.SUPPRESS, [], False) and action.option_strings
            return f"{text} (default: {action.default})" if shown else text

        def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
            return action.dest.split(".")[-1].upper()

    return Formatter
