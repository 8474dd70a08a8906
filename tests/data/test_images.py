import pytest
import torch

from counterflow.data.images import ImageSteps, digits, disjoint_parts
from counterflow.errors import DataError
from counterflow.nn.labels import class_ids


@pytest.fixture(scope="module")
def images():
    return digits()


def test_the_digits_are_images_in_the_range_of_the_noise(images):
    assert images.pixels.shape == (1797, 1, 8, 8) and images.pixels.dtype == torch.float32
    assert images.pixels.min() == -1 and images.pixels.max() == 1
    assert images.labels.bincount(minlength=10).min() > 170 and images.labels.max() == 9


def test_parts_are_disjoint_and_together_everything(images):
    numbered = images._replace(labels=torch.arange(1797))
    parts = disjoint_parts(numbered, [900, 400], seed=0)
    assert [len(part.labels) for part in parts] == [900, 400, 497]
    assert sorted(torch.cat([part.labels for part in parts]).tolist()) == list(range(1797))
    assert all(torch.equal(part.pixels, images.pixels[part.labels]) for part in parts)  # a label stays with its image
    again, other = (disjoint_parts(numbered, [900, 400], seed=seed)[0].labels for seed in (0, 1))
    assert torch.equal(again, parts[0].labels) and not torch.equal(other, parts[0].labels)
    with pytest.raises(DataError, match="leave nothing of 1797"):
        disjoint_parts(images, [1000, 797], seed=0)


def test_a_batch_is_a_function_of_the_seed_and_its_number(images):
    ids = class_ids(images.labels)

    def steps(seed=0, start=0):
        return ImageSteps(images.pixels, ids, batch_size=16, seed=seed, start=start, stop=4)

    batches = list(steps())
    assert len(batches) == len(steps()) == 4
    resumed = list(steps(start=2))
    assert torch.equal(resumed[0].target, batches[2].target) and len(resumed) == 2
    assert not torch.equal(batches[0].target, batches[1].target) and not torch.equal(steps(1).batch(0).target, batches[0].target)
    for batch in batches:  # labels stay with their images
        at = [int((images.pixels == pixels).flatten(1).all(1).nonzero()[0]) for pixels in batch.target]
        assert torch.equal(batch.ids.perturbation, ids.perturbation[at])
