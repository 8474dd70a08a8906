"""Scoring of predictions. The names below are imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from counterflow.evaluate.cell_eval import cell_eval_pairs as cell_eval_pairs
    from counterflow.evaluate.cell_eval import to_cell_eval as to_cell_eval

_PUBLIC = {"cell_eval_pairs": "counterflow.evaluate.cell_eval", "to_cell_eval": "counterflow.evaluate.cell_eval"}

__all__ = ["cell_eval_pairs", "to_cell_eval"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'counterflow.evaluate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
