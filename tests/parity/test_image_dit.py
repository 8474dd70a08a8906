"""Our image DiT against diffusers', on the same random weights. To run just these: `pytest -m parity tests/parity/test_image_dit.py`."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from counterflow.backbones.image_weights import load_image_dit, to_diffusers
from counterflow.errors import CheckpointError

pytest.importorskip("diffusers", reason="the oracle diffusers is not installed: pip install '.[parity]'")
pytestmark = pytest.mark.parity

FILE = Path(__file__).parents[2] / "benchmarks" / "parity_image.py"
SPEC = importlib.util.spec_from_file_location("parity_image", FILE)
parity = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(parity)

both_dialects = pytest.mark.parametrize("dialect", ["diffusers", "reference"])


@both_dialects
def test_the_same_output_in_twenty_draws(dialect, within):
    """Of weights, images and labels, at t = 0, 3, 250, 999, under a class and under none."""
    worst = max(parity.forward_difference(parity.SMALL, seed, dialect=dialect) for seed in range(parity.DRAWS))
    within(f"image DiT, {dialect} dialect, small, {parity.DRAWS} draws", worst, parity.FORWARD)


@both_dialects
def test_the_same_output_of_s2(dialect, within):
    within(f"image DiT, {dialect} dialect, S/2", parity.forward_difference(parity.S2, dialect=dialect), parity.FORWARD)


def test_the_dialects_differ_where_they_should():
    """Little at t = 0, a lot at t = 999: the time tables part."""
    _, ours = parity.pair(parity.SMALL)
    _, reference = parity.pair(parity.SMALL, dialect="reference")
    x, t, labels = parity.images(parity.SMALL)
    with torch.no_grad():
        apart = (ours(x, t, labels) - reference(x, t, labels)).abs().flatten(1).amax(1)[: len(parity.TIMES)]
    assert apart[0] < 1e-5 and apart[-1] > 0.1


def test_the_same_loss_and_gradients_on_s2(within):
    loss, gradient = parity.gradient_difference(parity.S2)
    within("image DiT, S/2, loss, relative", loss, parity.GRADIENT)
    within("image DiT, S/2, gradient of every weight, relative", gradient, parity.GRADIENT)


def test_the_same_positions(within):
    within("image DiT, position table", parity.position_difference(parity.S2), 1e-6)


def test_weights_go_both_ways_bit_for_bit(within):
    for kind, changed in zip(("reference", "diffusers"), parity.changed_by_round_trip(parity.SMALL), strict=True):
        within(f"image DiT, tensors changed by {kind} -> ours -> {kind}", changed, 0)


def test_a_file_of_ours_is_read_by_diffusers(tmp_path):
    theirs, ours = parity.pair(parity.SMALL)
    save_file(to_diffusers(ours), tmp_path / "weights.safetensors")
    expected = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    parity.randomise(theirs, 1, wide=False)
    theirs.load_state_dict(load_file(tmp_path / "weights.safetensors"))  # strict
    assert parity.changed(expected, theirs.state_dict()) == 0
    again = load_image_dit(tmp_path / "weights.safetensors", n_heads=4, state_shape=(4, 8, 8)).eval()
    x, t, labels = parity.images(parity.SMALL)
    assert torch.equal(again(x, t, labels), ours(x, t, labels))


def test_blocks_that_embed_differently_are_refused():
    theirs, _ = parity.pair(parity.SMALL)
    with torch.no_grad():
        theirs.transformer_blocks[2].norm1.emb.timestep_embedder.linear_2.bias[3] += 1e-6
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.2\..*linear_2\.bias.*differs"):
        load_image_dit(theirs.state_dict(), n_heads=4)


@pytest.mark.slow
def test_the_largest_loads_quickly_and_without_a_second_copy(within):
    loaded = parity.load_from_file("XL/2")
    assert loaded["bytes"] == 4 * 675_129_632
    within("image DiT, XL/2 from a file: seconds", loaded["seconds"], parity.SECONDS)
    within("image DiT, XL/2 from a file: peak memory in sizes of the weights", loaded["sizes"], parity.SIZE)
