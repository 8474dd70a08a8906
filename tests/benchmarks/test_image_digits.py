"""The judge of generated digits, and the document that is made of its numbers. That the experiment runs is shown in test_configs.py."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def imported(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_frechet_distance_of_gaussians_is_the_known_one(imported):
    """|m1 - m2|² + sum of (s1 - s2)² for diagonal covariances in common axes."""
    frechet = imported("image_judge").frechet
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 200_000, 3, generator=generator, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    s1, s2, shift = torch.tensor([[1.0, 2.0, 0.5], [1.5, 1.0, 0.1], [0.3, -0.2, 1.0]], dtype=torch.float64)
    expected = float(shift.square().sum() + (s1 - s2).square().sum())
    assert frechet(a * s1 @ axes, b * s2 @ axes + shift) == pytest.approx(expected, rel=0.02)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_without_spread_in_a_direction_it_is_still_a_number(imported):
    frechet = imported("image_judge").frechet
    flat = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 1.0, 0.0])
    assert frechet(flat, flat + 1.0) == pytest.approx(4.0, abs=1e-5)


def test_the_judge_knows_digits_it_has_not_seen_and_tells_noise_from_them(imported, monkeypatch):
    judging, images = imported("image_judge"), imported("counterflow.data.images")
    monkeypatch.setattr(judging, "N_STEPS", 250)
    seen, unseen = images.disjoint_parts(images.digits(), [450], seed=0)
    judge = judging.train_judge(seen, 0)
    assert judge.accuracy(unseen) > 0.93
    shuffled = unseen._replace(labels=unseen.labels.roll(1))
    assert judge.accuracy(shuffled) < 0.3
    noise = torch.randn(450, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert judge.distance(noise, unseen.pixels) > 20 * judge.distance(seen.pixels, unseen.pixels)


def test_copies_are_near(imported):
    to_nearest = imported("image_judge").to_nearest
    images = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert to_nearest(images[:5], images) < 1e-3
    assert to_nearest(torch.zeros(3, 1, 2, 2), torch.ones(4, 1, 2, 2)) == pytest.approx(2)


def test_the_document_says_what_was_measured(imported, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["image_doc.py", "--check"])
    assert imported("image_doc").main() == 0, "run python benchmarks/image_doc.py"
