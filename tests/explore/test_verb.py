"""`counterflow explore` as it is called: it prints where to look, ends at Ctrl-C, and refuses what it cannot serve."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from counterflow.cli import main


@pytest.mark.slow
@pytest.mark.parametrize("json_too", [[], ["--json"]])
def test_it_prints_an_address_that_works_and_ends_at_ctrl_c(model, tmp_path, json_too):
    model.save(tmp_path / "model")
    command = [sys.executable, "-m", "counterflow.cli", "explore", str(tmp_path / "model"), "--no-browser", *json_too]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/\S{32,}/", "".join(process.stdout.readline() for _ in range(1 + len(json_too))))[0]
        with urllib.request.urlopen(address, timeout=20) as response:
            assert b"What would a perturbation do?" in response.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0 and err == "" and (json_too or "ended" in out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["MODEL", "--port", "70000"], "--port 70000"),
        (["MODEL", "--port", "first"], "whole number"),
        (["MODEL", "--data", "nothing.h5ad"], "nothing.h5ad"),
        (["MODEL", "--data", "MODEL/model.json"], "not an h5ad file"),
    ],
)
def test_what_cannot_be_served_is_one_line(model, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr("counterflow.explore.server.Server.serve_forever", lambda self: pytest.fail("served"))
    model.save(tmp_path / "model")
    given = [word.replace("MODEL", str(tmp_path / "model")) for word in arguments]
    assert main(["explore", *given, "--no-browser"]) == 2
    said = capsys.readouterr()
    assert words in said.err and len(said.err.splitlines()) == 1


def test_programs_read_the_address(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("counterflow.explore.server.Server.serve_forever", lambda self: None)
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    model.save(tmp_path / "model")
    assert main(["explore", str(tmp_path / "model"), "--json"]) == 0
    assert [json.loads(capsys.readouterr().out)["address"]] == opened
