import argparse

import pytest
import torch
from safetensors.torch import save_file

from counterflow.backbones.image_dit import ImageDiT
from counterflow.backbones.image_weights import load_image_dit, to_diffusers, to_reference
from counterflow.errors import CheckpointError, ConfigError
from counterflow.nn.embed import sincos_2d

TINY = {"width": 32, "depth": 2, "n_heads": 4, "patch": 2}
X, T, LABELS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 250, 999]), torch.tensor([1, 5, 10])


@pytest.fixture
def model(randomise):
    return randomise(ImageDiT((4, 8, 8), 10, **TINY, objective="ddpm")).eval()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_names_and_shapes_of_the_reference(model):
    state = to_reference(model)
    assert state["x_embedder.proj.weight"].shape == (32, 4, 2, 2)
    assert state["pos_embed"].shape == (1, 16, 32)
    assert state["y_embedder.embedding_table.weight"].shape == (11, 32)
    assert state["t_embedder.mlp.0.weight"].shape == (32, 256)
    assert state["blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert state["blocks.1.attn.proj.weight"].shape == (32, 32)
    assert state["blocks.0.mlp.fc1.weight"].shape == (128, 32) and state["blocks.0.mlp.fc2.weight"].shape == (32, 128)
    assert state["blocks.0.adaLN_modulation.1.bias"].shape == (6 * 32,)
    assert state["final_layer.linear.weight"].shape == (2 * 2 * 8, 32)
    assert len(state) == 2 * (1 + 2 + 2) + 2 + 2 * 2 * 5


@pytest.mark.parametrize("write", [to_reference, to_diffusers])
def test_there_and_back_is_the_same_network(model, write):
    again = load_image_dit(write(model), n_heads=4, state_shape=(4, 8, 8)).eval()
    assert same(again.state_dict(), model.state_dict())
    assert same(write(again), write(model))
    if write is to_reference:
        assert torch.equal(again(X, T, LABELS), model(X, T, LABELS))
    again(X, T, LABELS).sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_a_state_of_the_reference_becomes_the_parameters_without_a_copy(model):
    state = {name: tensor.clone() for name, tensor in to_reference(model).items()}
    loaded = load_image_dit(state, n_heads=4)
    for name, weight in to_reference(loaded).items():
        assert weight.data_ptr() == state[name].data_ptr(), name


def test_diffusers_has_every_embedder_in_every_block(model):
    state = to_diffusers(model)
    assert sum(tensor.numel() for tensor in state.values()) == sum(p.numel() for p in model.parameters()) + (
        11 * 32 + 256 * 32 + 32 + 32 * 32 + 32
    )
    state["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"][3, 3] += 1
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.1.*class_embedder.*differs"):
        load_image_dit(state, n_heads=4, state_shape=(4, 8, 8))


@pytest.mark.parametrize("kind", ["plain", "model", "training", "safetensors"])
def test_files_are_read(model, kind, tmp_path):
    state = {name: tensor.clone() for name, tensor in to_reference(model).items()}
    worse = {name: tensor + 1 for name, tensor in state.items()}
    file = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pt")
    if kind == "safetensors":
        save_file(state, file)
    elif kind == "training":
        torch.save({"model": worse, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)}, file)
    else:
        torch.save({"model": state} if kind == "model" else state, file)
    assert same(to_reference(load_image_dit(file, n_heads=4)), state)


class Command:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"x_embedder.proj.weight": Command()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"cannot read weights from .*bad\.pt"):
        load_image_dit(tmp_path / "bad.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(("height", "width"), [(8, 12), (4, 16)])  # the latter has as many patches as the file
def test_another_image_size_gets_its_own_positions(height, width, model):
    loaded = load_image_dit(to_reference(model), n_heads=4, state_shape=(4, height, width))
    assert torch.equal(loaded.state_dict()["backbone.tokenizer.positions"], sincos_2d(height // 2, width // 2, 32))
    assert loaded(torch.randn(1, 4, height, width), torch.tensor([5]), torch.tensor([1])).shape == (1, 8, height, width)


def test_sit_weights_give_a_velocity(model):
    sit = load_image_dit(to_reference(model), n_heads=4, objective="sit").eval()
    t = torch.tensor([0.0, 0.5, 1.0])
    assert torch.equal(sit(X, t, LABELS), model(X, t, LABELS)[:, :4])


def test_what_is_not_a_dit_is_said(model, tmp_path):
    state = to_reference(model)
    with pytest.raises(CheckpointError, match="no weights of a DiT"):
        load_image_dit({"conv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"1 missing \(blocks\.1\.mlp\.fc2\.bias\)"):
        load_image_dit({name: tensor for name, tensor in state.items() if name != "blocks.1.mlp.fc2.bias"}, n_heads=4)
    with pytest.raises(CheckpointError, match=r"1 unknown \(blocks\.0\.extra\)"):
        load_image_dit(state | {"blocks.0.extra": torch.zeros(1)}, n_heads=4)
    with pytest.raises(CheckpointError, match="do not fit"):
        load_image_dit(state | {"blocks.0.mlp.fc1.bias": torch.zeros(3)}, n_heads=4)
    with pytest.raises(ConfigError, match="width of 32.*n_heads"):
        load_image_dit(state)
    (tmp_path / "text.pt").write_text("weights")
    for missing in ("text.pt", "absent.pt", "absent.safetensors"):
        with pytest.raises(CheckpointError, match=missing):
            load_image_dit(tmp_path / missing)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no dict of tensors"):
        load_image_dit(tmp_path / "list.pt")


def test_networks_that_the_formats_cannot_hold_are_refused():
    with pytest.raises(ConfigError, match="not 'cross'"):
        to_reference(ImageDiT((4, 8, 8), 10, **TINY, conditioning="cross"))
    with pytest.raises(ConfigError, match="positions='sincos_2d'"):
        to_diffusers(ImageDiT((4, 8, 8), 10, **TINY, positions="sincos_1d"))
