"""The pages of the explorer: a form and its answer, and the files to keep. A mistake is one message in the page."""

from __future__ import annotations

import traceback
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import numpy as np

from counterflow.data.schema import Setup
from counterflow.data.screen import describe
from counterflow.errors import CounterflowError
from counterflow.explore.answers import EffectAnswer, Explorer, RankAnswer
from counterflow.explore.questions import INTERVALS, SLOTS, EffectQuestion, Fields, RankQuestion, one
from counterflow.explore.server import Response
from counterflow.page.drawing import BLUE, GREY, ORANGE, Points, intervals, plate, scatter
from counterflow.page.render import render

TOP_GENES = 20
NAMED_GENES = 12
TITLED_GENES = 150  # of the volcano: the others are drawn without a name under the pointer
SUPPORT_WORDS = {
    "seen": "measured in training, in these cells",
    "components-seen": "its parts were measured, this was not",
    "features-only": "never measured, known by its features only: take it as a guess",
    "unseen-context": "not measured in these cells: carried over from others",
    "unknown": "nothing is known of it but the mean effect",
}


class Pages:
    """What is at which address, for `counterflow.explore.server`."""

    def __init__(self, explorer: Explorer, name: str, *, debug: bool = False) -> None:
        self.explorer, self.name, self.debug = explorer, name, debug

    def __call__(self, page: str, fields: dict[str, list[str]]) -> Response | None:
        """The page of an address; None where there is none."""
        pages = {"": self._effect, "rank": self._rank, "cells.h5ad": self._h5ad, "genes.csv": self._genes, "plate.csv": self._plate}
        if page not in pages:
            return None
        try:
            return pages[page](fields)
        except CounterflowError as error:
            return self._wrong(page, fields, str(error), HTTPStatus.BAD_REQUEST)
        except Exception as error:  # noqa: BLE001  a page that says so is better than a connection that ends
            if self.debug:
                traceback.print_exc()
            line = (str(error).splitlines() or [""])[0]
            text = f"{type(error).__name__}: {line}. This is a fault of counterflow; counterflow explore --debug shows where"
            return self._wrong(page, fields, text, HTTPStatus.INTERNAL_SERVER_ERROR)

    def _wrong(self, page: str, fields: Fields, text: str, status: HTTPStatus) -> Response:
        template = "rank.html" if page in ("rank", "plate.csv") else "effect.html"
        return self._page(template, fields, status, wrong=text, answer=None)

    def _page(self, template: str, fields: Fields, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        model = self.explorer.model
        facts = f"{model.config['backbone']} on {model.config['space']}, {len(model.genes):,} genes, "
        facts += f"{len(model.vocabulary.seen):,} perturbations"
        common = {
            "name": self.name, "facts": facts, "choices": self.explorer.choices, "slots": range(1, SLOTS + 1), "levels": INTERVALS,
            "fields": {name: one(fields, name) for name in fields}, "wrong": "", "has_intervals": model.intervals is not None,
        }  # fmt: skip
        return Response(render(template, **common | values).encode(), status=status)

    def _question(self, fields: Fields) -> EffectQuestion:
        setup = self.explorer.model.setup
        return EffectQuestion.read(fields, self.explorer.choices, setup.delimiter, setup.control)

    def _effect(self, fields: Fields) -> Response:
        if not fields:
            return self._page("effect.html", fields, answer=None)
        question = self._question(fields)
        return self._page("effect.html", fields, answer=self._shown(self.explorer.effect(question), question, fields))

    def _rank(self, fields: Fields) -> Response:
        if not fields:
            return self._page("rank.html", fields, answer=None)
        question = RankQuestion.read(fields, self.explorer.choices)
        return self._page("rank.html", fields, answer=self._ranked(self.explorer.rank(question), question, fields))

    def _h5ad(self, fields: Fields) -> Response:
        question = self._question(fields)
        return Response.download(self.explorer.h5ad(question), "application/octet-stream", f"{_file_name(question)}.h5ad")

    def _genes(self, fields: Fields) -> Response:
        question = self._question(fields)
        return _csv(self.explorer.effect(question).genes, f"{_file_name(question)}.csv")

    def _plate(self, fields: Fields) -> Response:
        return _csv(self.explorer.rank(RankQuestion.read(fields, self.explorer.choices)).table, "plate.csv")

    def _shown(self, answer: EffectAnswer, question: EffectQuestion, fields: Fields) -> dict[str, Any]:
        genes, setup = answer.genes, self.explorer.model.setup
        best = genes.reindex(genes["effect"].abs().sort_values(ascending=False, kind="stable").index)[:TOP_GENES]
        known = "lo" in genes and bool(genes["lo"].notna().any())
        sure = (genes["lo"] > 0) | (genes["hi"] < 0) if known else None
        return {
            "condition": answer.condition,
            "cells": ", ".join(level for _, level in question.levels),
            "support": answer.support,
            "support_words": SUPPORT_WORDS[answer.support],
            "interval": f"{question.interval:.0%}",
            "n_genes": len(genes),
            "n_sure": None if sure is None else int(sure.sum()),
            "n_beyond": int(genes["beyond_baseline"].sum()) if known else 0,
            "baseline": str(genes["baseline"].iloc[0]) if known else "",
            "calibrated_on": int(genes["calibrated_on"].iloc[0]) if known else 0,
            "measured_r": answer.measured_r,
            "remarks": answer.remarks,
            "genes": best.to_dict("records"),
            "nearest": [
                {"name": describe(near.spec, setup), "r": near.r, "size": near.size, "here": near.here,
                 "link": "?" + urlencode(_again(fields, near.spec.parts, setup.delimiter))}
                for near in answer.nearest
            ],
            "embedding": _embedding(answer),
            "volcano": _volcano(answer, f"{question.interval:.0%}") if known else "",
            "forest": _forest(answer.condition, best, known),
            "n_cells": answer.cells.n_obs,
            "query": urlencode(fields, doseq=True),
        }  # fmt: skip

    def _ranked(self, answer: RankAnswer, question: RankQuestion, fields: Fields) -> dict[str, Any]:
        table, setup = answer.table, self.explorer.model.setup
        towards = f"the measured effect of {question.like}" if question.like else "the wanted genes"
        if question.end:
            towards = " ".join(level for _, level in question.end)
        kept = {name: one(fields, name) for name in fields if name.startswith("in_") or name in ("dose", "time")}
        rows = table.to_dict("records")
        for row in rows:
            row["link"] = "./?" + urlencode(kept | {"p1": _perturbation_of(row["condition"], setup)})
        top = float(table["toward"].max())
        dark = (table["toward"].clip(lower=0) / top if top > 0 else table["toward"] * 0).to_numpy()
        wells = list(zip(table["well"], table["condition"], dark, strict=True))
        first = ", ".join(table["condition"][:3])
        return {
            "rows": rows,
            "towards": towards,
            "n_away": int((table["toward"] < 0).sum()),
            "cells": ", ".join(level for _, level in question.levels) or "the mean over all kinds of cells",
            "remarks": answer.remarks,
            "support_words": SUPPORT_WORDS,
            "plate": plate(wells, alt=f"Plate map of {len(table)} conditions, darkest where cells move furthest; first {first}"),
            "query": urlencode(fields, doseq=True),
        }


def _perturbation_of(condition: str, setup: Setup) -> str:
    """What `describe` wrote before dose and time."""
    if setup.time_key is not None:
        condition = condition.rpartition(" time ")[0]
    return condition.rpartition(" dose ")[0] if setup.dose_key is not None else condition


def _csv(table: Any, name: str) -> Response:
    return Response.download(table.to_csv(index=False, float_format="%.6g").encode(), "text/csv; charset=utf-8", name)


def _file_name(question: EffectQuestion) -> str:
    """Of what was asked, in letters that every system takes."""
    words = "_".join([*question.parts, *(level for _, level in question.levels)])
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in words)[:80]


def _again(fields: Fields, parts: tuple[str, ...], delimiter: str) -> dict[str, str]:
    """The same question of another perturbation."""
    kept = {name: one(fields, name) for name in fields if name not in {f"p{slot}" for slot in range(1, SLOTS + 1)}}
    return kept | {"p1": delimiter.join(parts)}


def _embedding(answer: EffectAnswer) -> Any:
    places = answer.places
    groups = [
        Points("control", places.control[:, 0], places.control[:, 1], GREY, mean=True),
        Points("measured", places.measured[:, 0], places.measured[:, 1], BLUE, "square", mean=True),
        Points("predicted", places.predicted[:, 0], places.predicted[:, 1], ORANGE, "triangle", mean=True),
    ]
    groups = [group for group in groups if len(group.x)]
    means = {group.name: np.array([group.x.mean(), group.y.mean()]) for group in groups}
    spread = float(np.sqrt(places.control.var(0).sum())) or 1.0

    def apart(which: str) -> str:
        return f"{np.linalg.norm(means['predicted'] - means[which]) / spread:.1f}"

    said = f"The mean of the predicted cells lies {apart('control')} spreads from the controls"
    if "measured" in means:
        said += f", and {apart('measured')} from the measured cells"
    return scatter(groups, alt=f"Cells on two principal components. {said}.", x_label="first component", y_label="second component")


def _volcano(answer: EffectAnswer, interval: str) -> Any:
    """Effect against how far it is beyond its interval's half width."""
    genes = answer.genes[answer.genes["lo"].notna()]
    effect = genes["effect"].to_numpy(dtype=float)
    sureness = np.abs(effect) / np.maximum((genes["hi"] - genes["lo"]).to_numpy(dtype=float) / 2, 1e-9)
    order = np.argsort(-sureness, kind="stable")
    top, rest = order[:TITLED_GENES], order[TITLED_GENES:]
    names = genes["gene"].astype(str).to_numpy()
    clear = top[sureness[top] > 1]
    unclear = top[sureness[top] <= 1]

    def titled(name: str, which: Any, colour: str) -> Points:
        titles = [f"{names[i]}: {effect[i]:+.2f}, {sureness[i]:.1f} half widths" for i in which]
        return Points(name, effect[which], sureness[which], colour, titles=titles)

    groups = [Points("other genes", effect[rest], sureness[rest], GREY), titled("unclear", unclear, GREY), titled("clear", clear, ORANGE)]
    largest = ", ".join(names[clear[np.argsort(-np.abs(effect[clear]), kind="stable")]][:5]) or "none"
    alt = f"Volcano plot of {len(genes)} genes; {int((sureness > 1).sum())} are clear of zero, the largest of them: {largest}."
    labelled = clear[np.argsort(-np.abs(effect[clear]), kind="stable")][:NAMED_GENES]
    return scatter(
        groups, alt=alt, x_label="effect on log expression", y_label="effect / half width of its interval", through_zero=True,
        names=[(effect[i], sureness[i], names[i]) for i in labelled], line=(1.0, f"above: the {interval} interval leaves out zero"),
    )  # fmt: skip


def _forest(condition: str, best: Any, known: bool) -> Any:
    none = np.full(len(best), np.nan)
    lo, hi, rival = (best[name].to_numpy(dtype=float) if known else none for name in ("lo", "hi", "baseline_effect"))
    names = best["gene"].astype(str).tolist()
    alt = f"The {len(names)} genes that {condition} changes most, with intervals; first {', '.join(names[:5])}."
    return intervals(names, best["effect"].to_numpy(dtype=float), lo, hi, rival, alt=alt, x_label="effect on log expression")
