import torch

from counterflow.backbones.image_dit import ImageDiT
from counterflow.diffusion.bound import bound_term
from counterflow.diffusion.loss import hybrid_loss
from counterflow.diffusion.module import DiffusionModule
from counterflow.diffusion.schedule import add_noise
from counterflow.nn.labels import class_ids
from counterflow.types import Batch

LABELS = torch.tensor([0, 1, 2, 1])


def noised(schedule, generator):
    x0 = torch.randn(4, 1, 4, 4, generator=generator)
    noise, i = torch.randn(x0.shape, generator=generator), torch.tensor([0, 1, 300, 999])
    return x0, add_noise(schedule, x0, noise, i), noise, i


def network(randomise):
    return randomise(ImageDiT((1, 4, 4), 3, width=16, depth=1, n_heads=2, patch=2, objective="ddpm")).eval()


def test_it_is_the_error_of_the_noise_plus_the_bound(schedule, generator, randomise):
    x0, x, noise, i = noised(schedule, generator)
    output = network(randomise)(x, schedule.times[i].float(), LABELS)
    loss = hybrid_loss(schedule, output, x0, x, noise, i)
    expected = (noise - output[:, :1]).square().mean((1, 2, 3)) + bound_term(schedule, output, x0, x, i)
    assert loss.shape == (4,) and torch.allclose(loss, expected)
    plain = hybrid_loss(schedule, output[:, :1], x0, x, noise, i)
    assert torch.allclose(plain, (noise - output[:, :1]).square().mean((1, 2, 3)))


def test_the_bound_teaches_the_variance_and_the_error_the_noise(schedule, generator, randomise):
    x0, x, noise, i = noised(schedule, generator)
    output = network(randomise)(x, schedule.times[i].float(), LABELS).detach().requires_grad_()
    (of_loss,) = torch.autograd.grad(hybrid_loss(schedule, output, x0, x, noise, i).sum(), output)
    (of_error,) = torch.autograd.grad((noise - output[:, :1]).square().mean((1, 2, 3)).sum(), output)
    (of_bound,) = torch.autograd.grad(bound_term(schedule, output, x0, x, i).sum(), output)
    assert torch.allclose(of_loss[:, :1], of_error[:, :1]) and torch.allclose(of_loss[:, 1:], of_bound[:, 1:])
    assert of_bound[:, :1].abs().max() > 0 and of_bound[:, 1:].abs().max() > 0  # the bound would have moved the noise


def batch(x0):
    return Batch(x0, None, class_ids(LABELS), torch.zeros(4, dtype=torch.long), torch.ones(4))


def test_the_module_asks_the_network_at_the_times_of_the_schedule_and_drops_labels(schedule, generator, randomise):
    dit = network(randomise)
    seen = []

    def backbone(x, t, condition):
        seen.append((t, condition.pooled))
        return dit.backbone(x, t, condition)

    model = DiffusionModule(dit.backbone, dit.labels, condition_dropout=0.5)
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    x0 = torch.randn(4, 1, 4, 4, generator=generator)
    first, again = (model.loss(batch(x0), torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == again and first != model.loss(batch(x0), torch.Generator().manual_seed(4))
    times = torch.cat([model.loss(batch(x0), torch.Generator().manual_seed(seed)) * 0 + seen[-1][1] for seed in range(200)])
    assert times.min() < 20 and times.max() > 980 and abs(times.mean() - 499.5) < 40
    null = torch.cat([(condition.pooled == dit.labels.table[3]).all(1) for _, _, condition in seen]).float().mean()
    assert 0.4 < null < 0.6


def test_the_module_guides(randomise, generator):
    dit = network(randomise)
    model = DiffusionModule(dit.backbone, dit.labels)
    x, t = torch.randn(4, 1, 4, 4, generator=generator), torch.full((4,), 700.0)
    plain, null = dit(x, t, LABELS), dit(x, t, torch.full((4,), 3))
    ids = class_ids(LABELS)
    assert torch.allclose(model.denoiser(ids)(x, t), plain, atol=1e-6)
    guided = model.denoiser(ids, guidance=3.0)(x, t)
    assert torch.allclose(guided[:, :1], null[:, :1] + 3 * (plain - null)[:, :1], atol=1e-5)
    assert torch.allclose(guided[:, 1:], plain[:, 1:], atol=1e-6) and not torch.allclose(guided[:, :1], plain[:, :1], atol=1e-3)


def test_a_short_training_learns(schedule):
    torch.manual_seed(0)
    dit = ImageDiT((1, 4, 4), 3, width=16, depth=1, n_heads=2, patch=2, objective="ddpm")
    model = DiffusionModule(dit.backbone, dit.labels)
    optimizer, x0 = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.ones(4, 1, 4, 4) * LABELS.reshape(-1, 1, 1, 1) - 1.0
    losses = []
    for step in range(200):
        loss = model.loss(batch(x0), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-50:]) < 0.5 * sum(losses[:50])
