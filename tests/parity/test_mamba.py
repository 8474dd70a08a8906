"""Our Mamba mixers against transformers and mambapy. To run just these: `pytest -m parity tests/parity/test_mamba.py -s`."""

import importlib.util
from pathlib import Path

import pytest
import torch

from counterflow.nn.mamba_weights import from_reference, to_reference

transformers = pytest.importorskip("transformers", reason="the oracle transformers is not installed: pip install '.[parity]'")
pytest.importorskip("mambapy", reason="the oracle mambapy is not installed: pip install '.[parity]'")
pytestmark = pytest.mark.parity
transformers.logging.set_verbosity_error()  # it would tell that its CUDA kernels are not there; the plain path is what we compare with

FILE = Path(__file__).parents[2] / "benchmarks" / "parity_mamba.py"
SPEC = importlib.util.spec_from_file_location("parity_mamba", FILE)
parity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parity)

every_pair = pytest.mark.parametrize(("oracle", "options"), parity.PAIRS)


@pytest.mark.parametrize("n_tokens", parity.LENGTHS)
@every_pair
def test_the_same_output_as_the_oracle(oracle, options, n_tokens):
    measured = parity.forward_difference(oracle, options, n_tokens)
    print(f"\n{oracle} {options} {n_tokens} tokens: {measured:.1e}")
    assert measured <= parity.FORWARD


@every_pair
def test_the_same_gradients_as_the_oracle(oracle, options):
    measured = parity.gradient_difference(oracle, options)
    print(f"\n{oracle} {options} gradients: {measured:.1e}")
    assert measured <= parity.GRADIENT


@every_pair
def test_weights_go_both_ways_bit_for_bit(oracle, options):
    ours, theirs = parity.pair(oracle, options)
    there = to_reference(ours.state_dict())
    theirs.load_state_dict(there)  # strict
    for mapped, original in ((there, theirs.state_dict()), (from_reference(there), ours.state_dict())):
        assert set(mapped) == set(original)
        assert all(torch.equal(mapped[name], original[name]) for name in mapped)


@pytest.mark.parametrize(("oracle", "options"), [("transformers Mamba-2", "one group"), ("transformers Mamba-1", "")])
def test_the_same_output_of_sequences_padded_in_front(oracle, options):
    """Without a bias of `in_proj`: transformers masks before it, so that its bias leaks out of the padding through the convolution."""
    ours, theirs = parity.pair(oracle, options)
    x, mask = parity.tokens(70), torch.ones(2, 70, dtype=torch.bool)
    mask[1, :25] = False
    with torch.no_grad():
        assert parity.difference(ours(x, mask)[mask], theirs(x, attention_mask=mask)[mask]) <= parity.FORWARD


def test_every_row_of_the_table_is_within_its_tolerance(monkeypatch):
    monkeypatch.setattr(parity, "LENGTHS", (33,))  # the others are above
    rows = list(parity.mamba())
    assert len(rows) == 4 + 2 * len(parity.PAIRS)
    assert [what for what, measured, tolerance in rows if not measured <= tolerance] == []
