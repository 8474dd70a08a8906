import pytest
import torch

from counterflow.diffusion.guidance import classifier_free
from counterflow.errors import ConfigError

X, TIME = torch.zeros(2, 4, 3, 3), torch.zeros(2)


def constant(value):
    return lambda x, time: torch.full((2, 8, 3, 3), value)


@pytest.mark.parametrize("channels, guided", [("all", 4), ("reference", 3)])
def test_the_channels_that_are_guided(channels, guided):
    """0 without a label, 1 with it: guided noise is w; the rest of the noise and the variance stay those under the label."""
    output = classifier_free(constant(1.0), constant(0.0), 2.5, channels)(X, TIME)
    assert output.shape == (2, 8, 3, 3)
    assert (output[:, :guided] == 2.5).all() and (output[:, guided:] == 1).all()


def test_with_one_channel_the_reference_guides_that_one():
    one = classifier_free(lambda x, t: torch.ones(2, 2, 3, 3), lambda x, t: torch.zeros(2, 2, 3, 3), 2.0, "reference")(X[:, :1], TIME)
    assert (one[:, 0] == 2).all() and (one[:, 1] == 1).all()


def test_without_guidance_the_null_is_not_asked():
    def refuses(x, time):
        raise AssertionError("asked")

    assert (classifier_free(constant(1.0), refuses, 1.0)(X, TIME) == 1).all()


def test_unknown_channels():
    with pytest.raises(ConfigError, match="did you mean 'reference'"):
        classifier_free(constant(1.0), constant(0.0), 2.0, "referense")
