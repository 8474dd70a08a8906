"""What `doctor` found, as a report to read and a declaration to paste."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from counterflow.data.schema import Setup
from counterflow.shown import card, code, facts, listed, paragraph


@dataclass(frozen=True)
class Diagnosis:
    """What was found. `str(diagnosis)` is the report; `setup` and `yaml` are ready to paste."""

    n_cells: int
    n_genes: int
    matrix: str  # what X and the layers hold, in words
    columns: dict[str, list[str]]  # role -> candidate columns, best first
    controls: dict[str, int]  # candidate control labels -> cells
    labels: dict[str, int]  # the commonest other labels -> cells
    combinations: int
    setup: Setup | None  # the proposed declaration; None where no perturbation column or control was recognised
    split: str | None  # a split that the data can carry; None where the file brings its own, or has problems
    labeling: str = "plain"  # the tool whose habits the labels follow
    needs: str = ""  # memory and time of a fit with the defaults
    problems: tuple[str, ...] = ()  # what stops the proposed declaration from being used
    notes: tuple[str, ...] = ()  # what is worth knowing
    path: str = "screen.h5ad"

    @property
    def python(self) -> str:
        """The `setup_anndata` call."""
        given = ", ".join(f"{name}={value!r}" for name, value in _given(self.setup).items())
        return f"cf.CounterFlow.setup_anndata(adata, {given})"

    @property
    def yaml(self) -> str:
        """A config file for `counterflow fit --config`."""
        import yaml

        run = Path(self.path).stem
        content: dict[str, Any] = {"data": {"path": self.path}} | ({"split": self.split} if self.split else {})
        return yaml.safe_dump(
            content | {"out": f"runs/{run}", "setup": _given(self.setup)}, sort_keys=False, default_flow_style=None
        ).strip()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = asdict(self) | {"setup": None if self.setup is None else _given(self.setup)}
        return values | ({"python": self.python, "yaml": self.yaml} if self.setup else {})

    def _repr_html_(self) -> str:
        known = {"matrix": self.matrix} | {role: ", ".join(found[:4]) for role, found in self.columns.items() if found}
        if self.labeling != "plain":
            known["labelled like"] = self.labeling
        known |= {"control": ", ".join(f"{name!r} ({n:,} cells)" for name, n in list(self.controls.items())[:3]) or "none recognised"}
        if self.labels:
            first = ", ".join(list(self.labels)[:5]) + (", ..." if len(self.labels) > 5 else "")
            known["conditions"] = f"{len(self.labels):,}, {self.combinations:,} of them combinations: {first}"
        known |= {"a fit needs": self.needs} if self.needs else {}
        parts = [facts(known), listed("wrong", self.problems), listed("to know", self.notes)]
        if self.setup is None:
            parts.append(paragraph("No declaration can be proposed: name the perturbation column and the control label yourself."))
        else:
            parts += [code("declare it", self.python), code("or in a file for counterflow fit --config", self.yaml, folded=True)]
        return card(f"{self.path}: {self.n_cells:,} cells x {self.n_genes:,} genes", *parts)

    def __str__(self) -> str:
        lines = [f"{self.path}: {self.n_cells:,} cells x {self.n_genes:,} genes", "", f"  matrix        {self.matrix}"]
        for role, found in self.columns.items():
            if found:
                others = f"   (or {', '.join(found[1:4])})" if len(found) > 1 else ""
                lines.append(f"  {role:<13} {found[0]}{others}")
        if self.labeling != "plain":
            lines.append(f"  labelled like {self.labeling}")
        if self.controls:
            lines.append("  control       " + ", ".join(f"{name!r} ({n:,} cells)" for name, n in list(self.controls.items())[:3]))
        if self.labels:
            listed = ", ".join(f"{name} ({n:,})" for name, n in list(self.labels.items())[:5])
            lines.append(
                f"  conditions    {len(self.labels):,}, {self.combinations:,} of them combinations: {listed}"
                + (" ..." if len(self.labels) > 5 else "")
            )
        if self.needs:
            lines.append(f"  a fit needs   {self.needs}")
        lines += ["", *_listed("wrong", self.problems), *_listed("to know", self.notes)]
        if self.setup is None:
            return "\n".join([*lines, "no declaration can be proposed: name the perturbation column and the control label yourself"])
        lines += ["declare it in Python:", "", f"  {self.python}", "", "or in a file for `counterflow fit --config FILE`:", ""]
        return "\n".join([*lines, *(f"  {line}" for line in self.yaml.splitlines())])


def _listed(title: str, texts: Sequence[str]) -> list[str]:
    return [f"{title}:", *(f"  {i}. {text}" for i, text in enumerate(texts, 1)), ""] if texts else []


def _given(setup: Setup | None) -> dict[str, Any]:
    """The options that differ from their defaults."""
    if setup is None:
        return {}
    default = Setup("", "").to_dict()
    return {name: value for name, value in setup.to_dict().items() if value != default[name]}
