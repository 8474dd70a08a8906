"""A cell is known by its name and by its counts, whatever the order of genes; the ledger keeps who learned from whom."""

import json

import numpy as np
import pytest
from scipy import sparse

from counterflow.data.ledger import CellKeys, Ledger, content_hashes, hashes

GENES = ("a", "b", "c", "d")


@pytest.fixture
def counts():
    return sparse.csr_matrix(np.array([[1, 0, 2, 0], [0, 0, 0, 0], [2, 0, 1, 0], [1, 0, 2, 0], [0, 1, 2, 0]], dtype=np.float32))


def test_hashes_are_stable_over_versions_and_runs():
    assert hashes(["cell1"]).tolist() == [1777464903233869238] and len(hashes([])) == 0
    assert len(np.unique(hashes([f"c{i}" for i in range(5000)]))) == 5000


def test_counts_and_genes_make_the_content_hash_and_their_order_does_not(counts):
    found = content_hashes(counts, GENES)
    assert found[0] == found[3] and len(np.unique(found)) == 4
    order = [2, 0, 3, 1]
    shuffled = sparse.csr_matrix(counts.toarray()[:, order])
    np.testing.assert_array_equal(content_hashes(shuffled, [GENES[i] for i in order]), found)
    assert not np.isin(content_hashes(counts, ("a", "b", "x", "d"))[[0, 2, 4]], found).any()


def test_blocks_and_empty_rows_change_nothing(counts, monkeypatch):
    whole = content_hashes(counts, GENES)
    monkeypatch.setattr("counterflow.data.source.BATCH", 2)
    np.testing.assert_array_equal(content_hashes(counts, GENES), whole)


def test_a_stage_keeps_all_cells_it_was_given(counts):
    ledger = Ledger()
    ledger.record("space", CellKeys.of(["p", "q"], counts[:2], GENES))
    first = ledger.seen["space"]
    ledger.record("space", CellKeys.of(["q"], counts[1:2], GENES))
    assert ledger.seen["space"] is first  # nothing new
    ledger.record("space", CellKeys.of(["r"], counts[2:3], GENES))
    assert ledger.seen["space"].name.tolist() == hashes(["p", "q", "r"]).tolist() and len(ledger.seen["space"].content) == 3
    ledger.record("space", CellKeys.of(["s"]))
    assert len(ledger.seen["space"].name) == 4 and ledger.seen["space"].content is None
    ledger.forget("space", "rule")
    assert ledger.stages() == []


def test_the_same_name_with_other_counts_is_new(counts):
    keys = CellKeys.of(["p"], counts[:1], GENES).with_more(CellKeys.of(["p"], counts[2:3], GENES))
    assert len(keys.name) == 2


def test_a_ledger_survives_and_stores_shared_cells_once(counts):
    ledger = Ledger()
    everyone = CellKeys.of(list("pqrst"), counts, GENES)
    for stage in ("weights", "space", "my own"):
        ledger.record(stage, everyone)
    ledger.record("vae", CellKeys.of(["p"]))
    ledger.remark("genes", "not known")
    stages, arrays = ledger.to_parts()
    assert list(stages) == ["genes", "vae", "space", "weights", "my own"] and len(arrays) == 2
    again = Ledger.from_parts(json.loads(json.dumps(stages)), arrays)
    assert again.stages() == ledger.stages() and again.remarks == ledger.remarks and again.seen["vae"].content is None
    for stage, keys in ledger.seen.items():
        np.testing.assert_array_equal(again.seen[stage].name, keys.name)
    np.testing.assert_array_equal(again.seen["space"].content, everyone.content)
