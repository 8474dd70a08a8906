"""The image DiT against its definition; against an independent implementation it is compared in tests/parity."""

import pytest
import torch

from counterflow.backbones import build
from counterflow.backbones.dit import dit
from counterflow.backbones.image_dit import ImageDiT
from counterflow.errors import ConfigError
from counterflow.flow.solvers import euler
from counterflow.module import FlowModule
from counterflow.nn.labels import LabelTable, class_ids
from counterflow.types import Batch

PUBLISHED = {  # trainable parameters: learned sigma, 1,000 classes and the null, latents of 4 x 32 x 32
    "S": {2: 32_865_056, 4: 32_920_448, 8: 33_142_016},
    "B": {2: 130_315_808, 4: 130_426_496, 8: 130_869_248},
    "L": {2: 457_840_672, 4: 457_988_224, 8: 458_578_432},
    "XL": {2: 674_834_720, 4: 675_000_704, 8: 675_664_640},
}
TINY = {"width": 32, "depth": 2, "n_heads": 4, "patch": 2}
X, T, LABELS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 250, 999]), torch.tensor([1, 5, 10])


def tiny(randomise, **options):
    return randomise(ImageDiT((4, 8, 8), 10, **TINY | options)).eval()


def n_parameters(model, trainable=True):
    return sum(p.numel() for p in model.parameters()) + (0 if trainable else sum(b.numel() for b in model.buffers()))


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("name", PUBLISHED)
def test_trainable_parameters_are_those_published(name, patch):
    with torch.device("meta"):
        model = ImageDiT(size=f"{name}/{patch}", objective="ddpm")
        assert n_parameters(model) == PUBLISHED[name][patch]
        n_tokens, width = model.backbone.tokenizer.positions.shape
        assert n_tokens == (32 // patch) ** 2
        assert n_parameters(model, trainable=False) == PUBLISHED[name][patch] + n_tokens * width
        without_sigma = n_parameters(ImageDiT(size=f"{name}/{patch}", objective="ddpm", learned_sigma=False))
        assert without_sigma == PUBLISHED[name][patch] - patch**2 * 4 * (width + 1)


def test_the_trunk_is_the_one_of_the_gene_dit():
    """Same modules under the same names, with the same shapes: what is proved of one holds for the other."""
    image, genes = build("image_dit", (4, 8, 8), 12, **TINY).trunk, dit((20,), 12, width=32, depth=2, n_heads=4).trunk
    assert type(image) is type(genes)
    assert {name: p.shape for name, p in image.named_parameters()} == {name: p.shape for name, p in genes.named_parameters()}
    assert [type(module) for module in image.modules()] == [type(module) for module in genes.modules()]


def test_a_fresh_network_gives_exactly_zero_and_starts_as_in_the_paper():
    model = ImageDiT((4, 8, 8), 200, width=384, depth=1, n_heads=6, patch=2, objective="ddpm").eval()
    assert (model(X, T, LABELS) == 0).all()
    time = model.backbone.trunk.embed_time.mlp
    for weight in (time[0].weight, time[2].weight, model.labels.table):
        assert 0.019 < weight.std() < 0.021


def test_sit_is_the_first_half_of_the_channels_at_the_time_as_it_is(randomise):
    ddpm, sit = tiny(randomise, objective="ddpm"), ImageDiT((4, 8, 8), 10, **TINY, objective="sit").eval()
    sit.load_state_dict(ddpm.state_dict())
    t = torch.tensor([0.0, 0.3, 1.0])
    assert ddpm(X, t, LABELS).shape == (3, 8, 8, 8)
    assert torch.equal(sit(X, t, LABELS), ddpm(X, t, LABELS)[:, :4])


def test_a_flow_reads_a_thousand_times_its_time(randomise):
    flow, plain = tiny(randomise), ImageDiT((4, 8, 8), 10, **TINY, objective="ddpm", learned_sigma=False).eval()
    plain.load_state_dict(flow.state_dict())
    t = torch.tensor([0.0, 0.25, 1.0])
    torch.testing.assert_close(flow(X, t, LABELS), plain(X, 1000 * t, LABELS))
    assert not torch.allclose(flow(X, t, LABELS), plain(X, t, LABELS), atol=1e-4)


def test_integer_times_are_times(randomise):
    model = tiny(randomise, objective="ddpm")
    assert torch.equal(model(X, T.long(), LABELS), model(X, T, LABELS))


@pytest.mark.parametrize("conditioning", ["adaln", "adaln_plain", "cross", "cross_layerscale", "in_context"])
def test_labels_and_their_dropout_reach_the_output_under_every_conditioning(conditioning, randomise):
    model = tiny(randomise, conditioning=conditioning).double()
    x, t = X.double(), T.double() / 1000
    other, none = model(x, t, LABELS - 1), model(x, t, torch.full((3,), 10))
    base = model(x, t, LABELS)
    assert (base[:2] - other[:2]).abs().max() > 1e-7 and (base[:2] - none[:2]).abs().max() > 1e-7
    assert torch.equal(base[2], none[2])
    always_dropped = ImageDiT((4, 8, 8), 10, **TINY, conditioning=conditioning, class_dropout=1.0).double().train()
    always_dropped.load_state_dict(model.state_dict())
    torch.testing.assert_close(always_dropped(x, t, LABELS), none)


def test_positions_matter_and_each_kind_is_its_own(randomise):
    outputs = {}
    for positions in ("sincos_2d", "sincos_1d", "learned"):
        model = tiny(randomise, positions=positions)
        outputs[positions] = model(X, T, LABELS)
        turned = model(X.flip(3), T, LABELS).flip(3)
        assert not torch.allclose(outputs[positions], turned, atol=1e-4)
    assert not torch.allclose(outputs["sincos_2d"], outputs["sincos_1d"], atol=1e-4)


def test_it_trains_and_samples_in_the_flow_engine(randomise):
    """Two classes of constant images: the engine takes the backbone and the label table as they are."""
    torch.manual_seed(0)
    model = ImageDiT((1, 4, 4), 2, width=32, depth=2, n_heads=2, patch=2)
    flow = FlowModule(model.backbone, model.labels, (1, 4, 4), source="noise", coupling="independent")
    optimiser = torch.optim.Adam(flow.parameters(), lr=3e-3)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(150):
        labels = torch.randint(2, (32,), generator=generator)
        images = (2.0 * labels - 1)[:, None, None, None].expand(-1, 1, 4, 4)
        loss = flow.loss(Batch(images, None, class_ids(labels), torch.zeros(32, dtype=torch.long), torch.ones(32)), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])
    flow.eval()
    labels = torch.tensor([0, 1]).repeat(20)
    noise = torch.randn(40, 1, 4, 4, generator=generator)
    with torch.no_grad():
        samples = euler(flow.velocity(class_ids(labels), guidance=1.5, guidance_kind="classifier_free"), noise, torch.linspace(0, 1, 11))
    means = samples.mean((1, 2, 3))
    assert ((means > 0) == (labels == 1)).all()


def test_what_cannot_be_built_is_said():
    with pytest.raises(ConfigError, match=r"images.*not \(30,\)"):
        build("image_dit", (30,), 12)
    with pytest.raises(ConfigError, match="no size 'S/3'.*'S/2'"):
        ImageDiT(size="S/3")
    with pytest.raises(ConfigError, match="no objective 'dppm'.*'ddpm'"):
        ImageDiT(objective="dppm")
    with pytest.raises(ConfigError, match="no dialect"):
        ImageDiT(dialect="german")


def test_the_label_table_has_the_width_of_the_trunk():
    assert isinstance(ImageDiT((4, 8, 8), 10, **TINY).labels, LabelTable)
    assert ImageDiT((4, 8, 8), 10, **TINY | {"width": 64}).labels.table.shape == (11, 64)
