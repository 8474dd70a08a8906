import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.nn.labels import LabelTable, class_ids

LABELS = torch.tensor([0, 3, 2])


def test_a_label_is_its_row_in_both_forms():
    table = LabelTable(4, 6).eval()
    pooled, tokens, mask = table(class_ids(LABELS))
    assert torch.equal(pooled, table.table[LABELS]) and torch.equal(tokens[:, 0], pooled)
    assert mask.shape == (3, 1) and mask.all()


def test_no_label_is_the_last_row_however_it_is_said():
    table = LabelTable(4, 6).eval()
    null = table.table[[4, 4, 4]]
    ids = class_ids(LABELS)
    nothing = ids._replace(perturbation=torch.zeros_like(ids.perturbation))  # the empty set
    for said in (table(class_ids(torch.full((3,), 4))), table(ids, torch.ones(3, dtype=torch.bool)), table(nothing)):
        assert torch.equal(said.pooled, null)
    mixed = table(ids, torch.tensor([False, True, False])).pooled
    assert torch.equal(mixed, table.table[[0, 4, 2]])


def test_labels_are_dropped_in_training_only_and_at_the_rate_given():
    table = LabelTable(1, 2, dropout=0.2)
    ids = class_ids(torch.zeros(4000, dtype=torch.long))
    dropped = (table(ids, generator=torch.Generator().manual_seed(0)).pooled == table.table[1]).all(1).float().mean()
    assert 0.17 < dropped < 0.23
    assert (table(ids, torch.zeros(4000, dtype=torch.bool)).pooled == table.table[0]).all()  # the caller chose: nothing more is dropped
    assert (table.eval()(ids).pooled == table.table[0]).all()


def test_without_dropout_there_is_no_null_row():
    table = LabelTable(4, 6, dropout=0)
    assert table.table.shape == (4, 6)
    assert torch.equal(table(class_ids(LABELS), torch.zeros(3, dtype=torch.bool)).pooled, table.table[LABELS])
    with pytest.raises(ConfigError, match="no row for 'no label'"):
        table(class_ids(LABELS), torch.tensor([False, True, False]))
    with pytest.raises(ConfigError, match="no row for 'no label'"):
        table(class_ids(LABELS - 1))  # the first is the empty set now
    with pytest.raises(ConfigError, match="probability"):
        LabelTable(4, 6, dropout=2)
