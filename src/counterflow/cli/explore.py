"""`counterflow explore`: a local page on which a fitted model is asked."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from counterflow.cli.parser import VerbParser
from counterflow.errors import ConfigError

EXAMPLE = """  counterflow explore runs/first
  counterflow explore runs/first --data screen.h5ad --port 8050 --no-browser"""


def parser() -> VerbParser:
    """The options of `explore`."""
    verb = VerbParser(
        "explore", "RUN [--data FILE.h5ad] [--port PORT] [--no-browser]",
        "A page in your browser: what perturbations would do, and what to do next. It is served by this machine, to you alone:\n"
        "the address holds a random word, and nothing is loaded from or sent to anywhere else. Ctrl-C ends it.", EXAMPLE,
    )  # fmt: skip
    verb.positional("run", "a run directory, or a saved model")
    verb.option("data", str | None, None, "a file (.h5ad) with measured cells to show beside the predicted ones")
    verb.option("port", int, 0, "0 takes one that is free")
    verb.flag("no_browser", "print the address, and open nothing")
    return verb


def run(argv: Sequence[str]) -> None:
    """Serve until Ctrl-C."""
    options, terminal = parser().parse(argv)
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port {options.port}: a number from 1 to 65535, or 0 for any")
    from counterflow.cli.feed import read_or_open
    from counterflow.cli.screen import only_kept
    from counterflow.explore.answers import Explorer
    from counterflow.explore.server import Server
    from counterflow.explore.site import Pages
    from counterflow.model import CounterFlow

    with terminal.working(f"loading {options.run}"):
        model = CounterFlow.load(options.run)
        adata = None if options.data is None else only_kept(read_or_open(options.data, model.setup, None, terminal), model.setup)
        explorer = Explorer(model, adata)
    pages = Pages(explorer, Path(options.run).resolve().name, debug=options.debug)
    with Server(pages, options.port) as server:
        terminal.result({"address": server.address})
        sys.stdout.flush()  # whoever reads a pipe is waiting for it
        terminal.say(f"open {server.address}", style="bold")
        terminal.say("only this machine can open it, and only with the whole address; Ctrl-C ends it", style="dim")
        threading.Thread(target=explorer.warm_up, daemon=True).start()
        if not options.no_browser:
            import webbrowser

            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            terminal.say("ended")
