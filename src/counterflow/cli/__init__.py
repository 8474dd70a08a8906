"""The command line: `counterflow VERB ...`, one file per verb. Every verb mirrors a public call.

The help text is written out, and a verb is imported when it is called, so that `counterflow --help` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from counterflow.errors import ConfigError, CounterflowError, CounterflowWarning, near

HELP = """counterflow: what would these control cells look like under another perturbation?

  counterflow VERB ... [--help]

  demo      fit a simulated screen and compare with the truth, in three minutes
  doctor    look at a file: what is in it, what is wrong with it, how to declare it
  convert   make a cache of a file that is too large for the memory
  fit       fit a model to a perturbation screen (.h5ad)
  generate  cells under conditions, measured or not, from a fitted model
  effect    genes that conditions change, with intervals and support
  rank      unmeasured perturbations that move cells most towards a signature
  explore   ask a fitted model in your browser, on this machine alone
  evaluate  score a fitted model on held-out conditions, beside simple rules
  compare   fit several models on the same split and rank them
  info      what is in a fitted model
  replay    fit a run again and say whether it comes out the same

An example, from a file to counterfactual cells:

  counterflow doctor screen.h5ad
  counterflow fit screen.h5ad --setup.perturbation_key gene --setup.control non-targeting \\
      --split unseen_combination --out runs/first
  counterflow generate runs/first --condition KLF1+MAP2K6 --out cells.h5ad
  counterflow effect runs/first --condition KLF1+MAP2K6

Every verb: --json (the result as JSON, nothing else), --quiet, --verbose, --debug (tracebacks), --help.
Tab completes verbs and options: source <(counterflow --print_completion bash), or zsh.
Exit code: 0 done, 2 something to mend in the input, 1 our fault (of replay: another result).
"""

VERBS = ("demo", "doctor", "convert", "fit", "generate", "effect", "rank", "explore", "evaluate", "compare", "info", "replay")


class Stopped(BaseException):
    """A signal asked the run to end; carries what the user should know to go on."""

    def __init__(self, signum: int, advice: str = "") -> None:
        super().__init__(advice)
        self.signum, self.advice = signum, advice


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 2 the user's input, 1 our fault, 128 + n ended by signal n."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    try:
        if not words or words[0] in ("-h", "--help", "help"):
            print(HELP, flush=True)
        elif words[0] in ("-V", "--version"):
            from counterflow import __version__

            print(__version__, flush=True)
        elif words[0] == "--print_completion":
            from counterflow.cli.completion import script

            print(script(words[1:]), end="", flush=True)
        else:
            with _warnings_as_lines("--quiet" in words), _bars(not {"--quiet", "--json"} & {*words}):
                _run(words)
    except CounterflowError as error:
        return _fail(f"error: {error}", 2, debug)
    except SystemExit as end:  # --help and --print_config of a verb
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except Stopped as stop:
        return _fail(f"stopped by signal {stop.signum}{stop.advice}", 128 + stop.signum, debug)
    except BrokenPipeError:  # the reader of our output went away, as in `counterflow info RUN | head`
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001
        line = (str(error).splitlines() or [""])[0]
        advice = "this is a fault of counterflow; run the same command with --debug to see where, and please report it"
        return _fail(f"internal error: {type(error).__name__}: {line}\n{advice}", 1, debug)
    return 0


def _run(words: list[str]) -> None:
    if words[0] not in VERBS:
        raise ConfigError(f"counterflow has no verb {words[0]!r}: {near(words[0], VERBS)}")
    importlib.import_module(f"counterflow.cli.{words[0]}").run(words[1:])


def _bars(wanted: bool) -> AbstractContextManager[None]:
    """Bars with the time left, or none."""
    from counterflow.data.progress import without_bars

    return nullcontext() if wanted else without_bars()


@contextmanager
def _warnings_as_lines(quiet: bool) -> Iterator[None]:
    """What does not stop a verb is one line on stderr, said once."""
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not issubclass(category, CounterflowWarning):
            before(message, category, *rest, **named)
        elif not quiet and str(message) not in said:
            said.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        before = warnings.showwarning
        warnings.simplefilter("always", CounterflowWarning)
        warnings.showwarning = show
        yield


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(text, file=sys.stderr)
    return code
