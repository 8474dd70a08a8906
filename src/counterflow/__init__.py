"""counterflow: counterfactual single cells with rectified flows.

>>> import counterflow as cf

Everything is imported on first use, so that this line costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "CounterFlow": "counterflow.model",
    "simulate_screen": "counterflow.data.simulate",
    "read_h5ad": "counterflow.data.files",
    "open_h5ad": "counterflow.data.stored",
    "load_screen": "counterflow.diagnosis.load",
    "doctor": "counterflow.diagnosis.doctor",
    "build_split": "counterflow.data.splits",
    "Split": "counterflow.data.split_file",
    "choose_genes": "counterflow.data.genes",
    "to_cellxgene": "counterflow.data.cellxgene",
    "audit_model": "counterflow.evaluate.audit",
    "poison_test": "counterflow.evaluate.poison",
    "choose_guidance": "counterflow.evaluate.guidance",
    "kept_cells": "counterflow.data.dropping",
    "CounterflowError": "counterflow.errors",
    "DataError": "counterflow.errors",
    "ConfigError": "counterflow.errors",
    "CheckpointError": "counterflow.errors",
    "CounterflowWarning": "counterflow.errors",
}
_ROOMS = ("backbones", "conditions", "data", "evaluate", "flow", "nn", "pl", "spaces")

if TYPE_CHECKING:
    from counterflow.data.simulate import simulate_screen as simulate_screen
    from counterflow.errors import CheckpointError as CheckpointError
    from counterflow.errors import ConfigError as ConfigError
    from counterflow.errors import CounterflowError as CounterflowError
    from counterflow.errors import DataError as DataError
    from counterflow.model import CounterFlow as CounterFlow

__all__ = ["__version__", *sorted(_PUBLIC), *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"counterflow.{name}")
    raise AttributeError(f"module 'counterflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
