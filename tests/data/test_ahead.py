"""Items made ahead: in their order, with their errors, and no thread is left behind."""

import threading
import time

import pytest

from counterflow.data import ahead as module
from counterflow.data.ahead import ahead


@pytest.fixture(autouse=True)
def two_processors(monkeypatch):
    monkeypatch.setattr(module, "processors", lambda: 2)


def feeds():
    return [thread for thread in threading.enumerate() if thread.name == "counterflow-feed"]


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_the_same_items_in_their_order(depth):
    assert list(ahead(iter(range(50)), depth)) == list(range(50))
    assert not feeds()


def test_with_one_processor_there_is_no_thread(monkeypatch):
    monkeypatch.setattr(module, "processors", lambda: 1)
    assert [len(feeds()) for _ in ahead(range(3))] == [0, 0, 0]


def test_at_most_so_many_are_made_before_they_are_wanted():
    made = []
    items = ahead((made.append(i) or i for i in range(100)), 3)
    next(items)
    time.sleep(0.3)
    assert 2 <= len(made) <= 5 and len(feeds()) == 1
    items.close()
    assert not feeds() and len(made) <= 6


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        yield 2
        raise ValueError("three")

    taken = []
    with pytest.raises(ValueError, match="three"):
        for item in ahead(items()):
            taken.append(item)
    assert taken == [1, 2] and not feeds()
