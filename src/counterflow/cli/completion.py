"""`counterflow --print_completion bash`: a script that completes verbs, options and the names that options take.

The script holds all words, read from the parsers when it is printed, so that Tab costs nothing and starts no Python.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from counterflow.cli import VERBS
from counterflow.errors import ConfigError, near

SHELLS = ("bash", "zsh")
_BASH = """# Completion of counterflow. Use: source this file, or put it where bash-completion finds it.
_counterflow() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{verbs} --help --version --print_completion"
    else
        case "$verb $before" in
{values}
            *)
                case "$verb" in
{options}
                esac
                [[ "$word" == -* ]] || words=""
                ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -o bashdefault -F _counterflow counterflow
"""
_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def script(words: Sequence[str]) -> str:
    """What the shell that is named takes.

    Raises
    ------
    ConfigError
        If it is none of ours.
    """
    shell = words[0] if words else "bash"
    if shell not in SHELLS:
        raise ConfigError(f"there is no completion for {shell!r}: {near(shell, SHELLS)}")
    parsers = {verb: importlib.import_module(f"counterflow.cli.{verb}").parser() for verb in VERBS}
    values = [f'"--print_completion "*) words={_quoted(SHELLS)} ;;']
    options = []
    for verb, parser in parsers.items():
        options.append(f"{verb}) words={_quoted(f'--{name}' for name in sorted({*parser.types, 'help'}))} ;;")
        for name, kind in parser.types.items():
            if name not in parser.flags and (known := _names(name, kind)):
                values.append(f'"{verb} --{name}") words={_quoted(known)} ;;')
    bash = _BASH.format(verbs=" ".join(VERBS), values=_indented(values, 12), options=_indented(options, 20))
    return bash if shell == "bash" else _ZSH + bash


def _names(option: str, kind: Any) -> list[str]:
    """What an option takes, where that is one of a few names."""
    from counterflow.backbones import BACKBONES
    from counterflow.data.splits import SPLITS
    from counterflow.spaces import SPACES

    known = {"model.backbone": list(BACKBONES), "model.space": list(SPACES), "split": list(SPLITS)}
    return known.get(option) or list(_literals(kind))


def _literals(kind: Any) -> Iterator[str]:
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif kind is bool:
        yield from ("true", "false")
    elif get_origin(kind) not in (list, dict):
        for member in get_args(kind):
            yield from _literals(member)


def _quoted(words: Iterable[str]) -> str:
    return '"' + " ".join(words) + '"'


def _indented(lines: Iterable[str], by: int) -> str:
    return "\n".join(" " * by + line for line in lines)
