"""Spaces: cells in, states out, expected counts back."""

import random

import numpy as np
import pytest
import torch
from scipy import sparse

from counterflow import spaces
from counterflow.errors import ConfigError, DataError
from counterflow.spaces.base import log_normalise
from counterflow.spaces.latent import LatentSpace
from counterflow.spaces.poisson import fit_poisson

SIZES = {"raw": {}, "pca": {"n_components": 10}, "latent": {"n_latent": 5, "n_hidden": 16, "max_epochs": 30}}
every_space = pytest.mark.parametrize("name", SIZES)


@pytest.fixture(scope="module")
def cells():
    """400 cells of 25 genes: log-linear in two factors, Poisson counts, libraries over ten-fold."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(400, 2))
    rate = np.exp(rng.normal(size=25) + factors @ rng.normal(0, 0.6, (2, 25)))
    library = rng.lognormal(6, 0.6, 400)
    counts = rng.poisson(rate / rate.sum(1, keepdims=True) * library[:, None]).astype(np.float32)
    counts[:, -1] = 0  # a gene that is never seen
    return sparse.csr_matrix(counts), counts.sum(1)


@pytest.fixture(scope="module")
def fitted(cells):
    built = {name: spaces.build(name, 25, **kwargs) for name, kwargs in SIZES.items()}
    for space in built.values():
        space.fit(*cells, seed=0)
    return built


@every_space
def test_shapes_and_signs(name, fitted, cells):
    counts, library = cells
    space = fitted[name]
    state = space.encode(counts, library)
    assert state.shape == (400, *space.state_shape) and state.dtype == torch.float32 and state.isfinite().all()
    expected = space.decode(state, space.exposure(counts, library))
    assert expected.shape == (400, 25) and np.isfinite(expected).all() and (expected >= 0).all()
    assert space.dispersion.shape == (25,) and (space.dispersion > 0).all()


@every_space
def test_decoding_what_was_encoded_resembles_the_cells(name, fitted, cells):
    counts, library = cells
    expected = fitted[name].decode(fitted[name].encode(counts, library), fitted[name].exposure(counts, library))
    dense = counts.toarray()
    assert np.corrcoef(np.log(expected.sum(1)), np.log(dense.sum(1)))[0, 1] > 0.95
    assert np.corrcoef(np.log1p(expected.mean(0)), np.log1p(dense.mean(0)))[0, 1] > (0.8 if name == "latent" else 0.999)
    assert np.corrcoef(np.log1p(expected).ravel(), np.log1p(dense).ravel())[0, 1] > (0.7 if name == "latent" else 0.9)
    if name == "raw":
        assert np.isclose(expected, dense, atol=1e-3).mean() > 0.999  # all of the cell, but for clipping


@every_space
def test_expected_counts_scale_with_the_exposure(name, fitted, cells):
    counts, library = cells
    state = fitted[name].encode(counts, library)[:5]
    one, ten = (fitted[name].decode(state, np.full(5, factor, dtype=np.float32)) for factor in (100.0, 1000.0))
    np.testing.assert_allclose(10 * one, ten, rtol=1e-4)


@pytest.mark.parametrize("name", ["raw", "pca"])
def test_the_state_does_not_depend_on_sequencing_depth(name, fitted):
    counts = sparse.csr_matrix(np.arange(25, dtype=np.float32)[None])
    deep = 4 * counts
    of_shallow, of_deep = (fitted[name].encode(x, np.asarray(x.sum(1)).ravel()) for x in (counts, deep))
    torch.testing.assert_close(of_shallow, of_deep, atol=1e-4, rtol=1e-4)


@every_space
def test_cells_are_encoded_one_by_one(name, fitted, cells):
    counts, library = cells
    together = fitted[name].encode(counts, library)
    torch.testing.assert_close(fitted[name].encode(counts[7:9], library[7:9]), together[7:9], atol=1e-5, rtol=1e-4)


@every_space
def test_state_dict_is_the_whole_space(name, fitted, cells):
    counts, library = cells
    fresh = spaces.build(name, 25, **SIZES[name])
    fresh.load_state_dict(fitted[name].state_dict())
    state = fitted[name].encode(counts, library)
    assert torch.equal(fresh.encode(counts, library), state)
    exposure = fresh.exposure(counts, library)
    assert np.array_equal(fresh.decode(state, exposure), fitted[name].decode(state, exposure))
    assert torch.equal(fresh.dispersion, fitted[name].dispersion)


@every_space
def test_the_seed_decides_the_fit(name, cells):
    def states(seed):
        space = spaces.build(name, 25, **SIZES[name])
        space.fit(*cells, seed=seed)
        return space.encode(*cells)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = states(3)
        torch.manual_seed(2)
        assert torch.equal(first, states(3)) or name == "latent"  # its initial weights come from the caller's seed


def test_raw_states_are_standardised_and_clipped(cells):
    counts, library = cells
    space = spaces.build("raw", 25)
    space.fit(counts, library, seed=0)
    state = space.encode(counts, library)
    torch.testing.assert_close(state[:, :-1].mean(0), torch.zeros(24), atol=0.01, rtol=0)
    torch.testing.assert_close(state[:, :-1].std(0, correction=0), torch.ones(24), atol=0.1, rtol=0)  # but for clipping
    assert (state[:, -1] == 0).all()
    outlier = sparse.csr_matrix(np.eye(25, dtype=np.float32)[:1] * 1e4)
    assert space.encode(outlier, np.array([1.0])).abs().max() == 10


def test_pca_is_the_projection_scaled_by_one_number(fitted, cells):
    counts, library = cells
    space, values = fitted["pca"], log_normalise(counts, library).toarray()
    state = space.encode(counts, library).numpy() * float(space.scale)
    basis = space.loadings.numpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(10), atol=1e-4)
    np.testing.assert_allclose(state, (values - values.mean(0)) @ basis, atol=1e-3)
    assert (np.diff(state.var(0)) < 1e-3).all()
    assert np.std(state / float(space.scale)) == pytest.approx(1, abs=1e-3)


def test_a_rate_far_beyond_the_cells_is_held_back(fitted):
    rate = fitted["pca"].decode(torch.full((1, 10), 50.0), np.ones(1))
    assert (rate <= np.exp(fitted["pca"].highest.numpy()) * 1.001).all()


def test_poisson_decoder_finds_the_weights(cells):
    rng = np.random.default_rng(1)
    state, weight, bias = (
        torch.randn(3000, 3, generator=torch.Generator().manual_seed(0)),
        rng.normal(0, 0.5, (3, 6)),
        rng.normal(-5, 0.5, 6),
    )
    exposure = np.full(3000, 2000.0)
    counts = sparse.csr_matrix(rng.poisson(2000 * np.exp(bias + state.numpy() @ weight)).astype(np.float32))
    found, offset = fit_poisson(state, counts, exposure, ridge=1e-3)
    np.testing.assert_allclose(found, weight, atol=0.03)
    np.testing.assert_allclose(offset, bias, atol=0.03)
    mean = 2000 * torch.exp(state @ found + offset)
    np.testing.assert_allclose(mean.mean(0), np.asarray(counts.mean(0)).ravel(), rtol=1e-3)  # the bias has no prior
    heavy, _ = fit_poisson(state, counts, exposure, ridge=1e6)
    assert np.linalg.norm(heavy) < 0.6 * np.linalg.norm(weight)


def test_unknown_names_and_options():
    with pytest.raises(ConfigError, match="did you mean 'latent'"):
        spaces.build("latnet", 10)
    with pytest.raises(ConfigError, match="did you mean 'n_components'"):
        spaces.build("pca", 10, n_component=3)
    with pytest.raises(ConfigError, match="at least one component"):
        spaces.build("pca", 10, n_components=0)


def test_a_handed_in_autoencoder_is_checked(tiny_screen):
    import scvi

    adata = tiny_screen.adata.copy()
    scvi.model.SCVI.setup_anndata(adata)
    with torch.random.fork_rng(devices=[]):
        model = scvi.model.SCVI(adata, n_hidden=8, n_latent=4, gene_likelihood="nb")
        other = scvi.model.SCVI(adata, n_hidden=8, n_latent=4, gene_likelihood="zinb")
    genes = tuple(adata.var_names)
    with pytest.raises(DataError, match="not trained"):
        LatentSpace.from_trained(model, genes)
    with pytest.raises(DataError, match="other genes, or another order"):
        LatentSpace.from_trained(model, genes[::-1])
    other.is_trained_ = True
    with pytest.raises(ConfigError, match="gene_likelihood='nb'"):
        LatentSpace.from_trained(other, genes)
    model.is_trained_ = True
    space = LatentSpace.from_trained(model, genes)
    before = {name: value.clone() for name, value in space.vae.state_dict().items()}
    library = np.asarray(adata.X.sum(1)).ravel()
    space.fit(adata.X, library, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in space.vae.state_dict().items())  # it came trained
    state = space.encode(adata.X, library)
    torch.testing.assert_close(state.mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(state.std(0), torch.ones(4), atol=1e-3, rtol=0)


def test_the_autoencoder_repeats_and_leaves_the_callers_random_numbers_alone():
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (80, 12)).astype(np.float32))
    library = np.asarray(counts.sum(1), dtype=np.float32).ravel()

    def states():
        space = spaces.build("latent", 12, n_latent=3, n_hidden=8, max_epochs=1)
        space.fit(counts, library, seed=3)
        return space.encode(counts, library)

    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second = states(), states()
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
