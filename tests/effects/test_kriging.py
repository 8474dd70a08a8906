"""Effects carried over between contexts: what was measured stays, noise goes, similar contexts count more."""

import numpy as np
import pytest
from scipy import sparse

from counterflow.effects.kriging import KrigedRule, MeasuredEffects, shrunk
from counterflow.errors import DataError
from counterflow.types import ConditionSpec

FEATURES = 400


def spec(*parts, dose=1.0, time=0.0):
    return ConditionSpec(parts, (dose,) * len(parts), time)


def measured(effects, noise, control, specs=None):
    """`effects` (P x C x F, NaN where not measured)."""
    units = [(p, c) for p in range(effects.shape[0]) for c in range(effects.shape[1]) if not np.isnan(effects[p, c, 0])]
    return MeasuredEffects(
        (spec("A"),) if specs is None else tuple(specs),
        tuple((f"c{c}",) for c in range(len(control))),
        np.array([p for p, _ in units]),
        np.array([c for _, c in units]),
        np.array([effects[u] for u in units], dtype=np.float32),
        np.broadcast_to(np.float32(noise), (len(units), effects.shape[2])).copy(),
        control.astype(np.float32),
    )


def controls(rng, contexts):
    return rng.normal(1, 0.5, (contexts, FEATURES))


def left_out(effects):
    """The same, without the last context."""
    return np.concatenate([effects[:, :-1], np.full_like(effects[:, -1:], np.nan)], axis=1)


def error(rule, truth, level, control, name="A"):
    return float(((rule.effect(spec(name), level, control) - truth) ** 2).sum() / (truth**2).sum())


def test_an_effect_measured_once_without_noise_is_itself():
    rng = np.random.default_rng(0)
    effect = rng.normal(size=(1, 1, FEATURES))
    rule = KrigedRule(measured(effect, 0.0, controls(rng, 1)))
    assert rule.effect(spec("A"), ("c0",), np.ones(FEATURES)) == pytest.approx(effect[0, 0], rel=1e-5)


def test_a_condition_measured_here_without_noise_keeps_its_own_effect_among_several_contexts():
    rng = np.random.default_rng(0)
    effect, control = rng.normal(size=(1, 4, FEATURES)), controls(rng, 4)
    rule = KrigedRule(measured(effect, 1e-6, control))
    for c in range(4):
        assert rule.effect(spec("A"), (f"c{c}",), control[c]) == pytest.approx(effect[0, c], abs=0.02)


@pytest.mark.parametrize("contexts", [1, 2, 3, 6])
def test_where_nothing_happened_the_answer_is_the_control(contexts):
    """Pure noise: what is left of it is less than a twentieth of what one context measures."""
    rng = np.random.default_rng(contexts)
    noise = 0.01
    left = []
    for _ in range(5):
        control = controls(rng, contexts + 1)
        effects = left_out(rng.normal(0, np.sqrt(noise), (4, contexts + 1, FEATURES)))
        rule = KrigedRule(measured(effects, noise, control, [spec(name) for name in "ABCD"]))
        left += [(rule.effect(spec(name), (f"c{contexts}",), control[-1]) ** 2).sum() / (noise * FEATURES) for name in "ABCD"]
    assert np.mean(left) < 0.05


def test_similar_contexts_count_more_than_others():
    """Two families of contexts with different responses: the rule of the right family is found, which the mean is not."""
    rng = np.random.default_rng(0)
    family = np.array([0, 0, 0, 1, 1, 1])
    base, response = rng.normal(1, 1, (2, FEATURES)), rng.normal(0, 1, (2, FEATURES))
    control = base[family] + rng.normal(0, 0.1, (6, FEATURES))
    effects = (response[family] + rng.normal(0, 0.1, (6, FEATURES)))[None]
    rule = KrigedRule(measured(left_out(effects), 0.01, control))
    mean = effects[0, :-1].mean(0)
    mine = error(rule, effects[0, -1], ("c5",), control[5])
    assert mine < 0.1 < 0.3 < ((mean - effects[0, -1]) ** 2).sum() / (effects[0, -1] ** 2).sum()


def test_an_effect_may_depend_on_how_much_of_a_gene_there_was():
    rng = np.random.default_rng(0)
    control = np.abs(controls(rng, 8))
    effects = (-0.6 * control + rng.normal(0, 0.05, control.shape))[None]  # every gene falls by the same share
    rule = KrigedRule(measured(left_out(effects), 0.0025, control))
    mean = effects[0, :-1].mean(0)
    mine = error(rule, effects[0, -1], ("c7",), control[7])
    assert mine < 0.5 * ((mean - effects[0, -1]) ** 2).sum() / (effects[0, -1] ** 2).sum()


def test_a_context_unknown_to_training_needs_its_controls():
    rng = np.random.default_rng(0)
    control = controls(rng, 3)
    rule = KrigedRule(measured(rng.normal(size=(1, 3, FEATURES)), 0.1, control))
    elsewhere = rule.effect(spec("A"), ("elsewhere",), control[0])
    assert elsewhere == pytest.approx(rule.effect(spec("A"), ("c0",), control[0]))  # the same controls, the same answer
    with pytest.raises(DataError, match="give its controls"):
        rule.at(("elsewhere",))


def test_log_expression_does_not_fall_below_zero():
    control = np.full(FEATURES, 0.2)
    effects = np.full((1, 2, FEATURES), -1.0)
    effects[0, 1] = np.nan
    at = np.stack([np.ones(FEATURES), control])
    assert KrigedRule(measured(effects, 0.0, at), floor=0.0).effect(spec("A"), ("c1",), control) == pytest.approx(-control)
    assert KrigedRule(measured(effects, 0.0, at)).effect(spec("A"), ("c1",), control) == pytest.approx(-1)


def test_an_unseen_perturbation_gets_of_the_mean_effect_what_it_is_worth():
    """Where effects have nothing in common the mean of the others says nothing; where they are all alike, everything."""
    rng = np.random.default_rng(0)
    specs = [spec(name) for name in "ABCDEF"]
    unlike = rng.normal(size=(6, 1, FEATURES))
    alike = np.tile(rng.normal(size=FEATURES), (6, 1, 1))
    one = controls(rng, 1)
    new = spec("new")
    generic = KrigedRule(measured(unlike, 0.0, one, specs)).effect(new, ("c0",), one[0])
    assert (generic**2).sum() < 0.1 * (unlike.mean(0) ** 2).sum()
    assert KrigedRule(measured(alike, 0.0, one, specs)).effect(new, ("c0",), one[0]) == pytest.approx(alike[0, 0], rel=1e-4)


def test_times_between_measured_ones_are_interpolated():
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(2, 1, FEATURES))
    rule = KrigedRule(measured(effects, 0.0, controls(rng, 1), [spec("A", time=1.0), spec("A", time=3.0)]))
    assert rule.effect(spec("A", time=2.0), ("c0",), np.ones(FEATURES)) == pytest.approx(effects.mean(0)[0], rel=1e-4)
    assert rule.effect(spec("A", time=9.0), ("c0",), np.ones(FEATURES)) == pytest.approx(effects[1, 0], rel=1e-4)


def test_shrinkage_keeps_a_direction_and_takes_noise():
    rng = np.random.default_rng(0)
    truth = rng.normal(0, 0.3, 5000) * (rng.random(5000) < 0.1)
    noisy = truth + rng.normal(0, 0.1, 5000)
    kept = shrunk(noisy, np.full(5000, 0.01))
    assert ((kept - truth) ** 2).sum() < 0.7 * ((noisy - truth) ** 2).sum()
    assert np.corrcoef(kept, truth)[0, 1] > np.corrcoef(noisy, truth)[0, 1]
    nothing = rng.normal(0, 0.1, 5000)
    assert 0 < np.abs(shrunk(nothing, np.full(5000, 0.01))).mean() < 0.1 * np.abs(nothing).mean()


def test_measuring_sparse_and_dense_cells_gives_the_same_and_ignores_contexts_without_controls():
    rng = np.random.default_rng(0)
    cells = rng.poisson(1.0, (60, 5)).astype(np.float32)
    condition = np.array([0, 1, 2] * 20)
    context = np.repeat([0, 1], 30)
    condition[30:][condition[30:] == 0] = 1  # no controls in the second context
    args = ([spec(), spec("A"), spec("B")], condition, [("x",), ("y",)], context)
    dense = MeasuredEffects.measure(lambda rows: cells[rows], *args)
    few = MeasuredEffects.measure(lambda rows: sparse.csr_matrix(cells[rows]), *args)
    assert dense.levels == (("x",),) and dense.spec_of.tolist() == [0, 1]
    first = context == 0
    expected = cells[first & (condition == 1)].mean(0) - cells[first & (condition == 0)].mean(0)
    assert dense.effect[0] == pytest.approx(expected, abs=1e-6)
    for name in ("effect", "noise", "control"):
        assert getattr(few, name) == pytest.approx(getattr(dense, name), abs=1e-6)
    with pytest.raises(DataError, match="drop a key from match_keys"):
        MeasuredEffects.measure(lambda rows: cells[rows], args[0], np.where(context == 0, 0, 1), args[2], context)


def test_the_variance_of_the_error_is_that_of_repeated_measurements():
    rng = np.random.default_rng(0)
    condition = np.repeat([0, 1], [60, 40])
    effects, noise = [], []
    for _ in range(400):
        cells = rng.normal(0, [1.0, 3.0], (100, 2))
        one = MeasuredEffects.measure(lambda rows, cells=cells: cells[rows], [spec(), spec("A")], condition, [()], np.zeros(100, dtype=int))
        effects.append(one.effect[0])
        noise.append(one.noise[0])
    assert np.mean(noise, 0) == pytest.approx(np.var(effects, 0), rel=0.2)


def test_a_group_of_few_cells_is_not_taken_for_certain():
    """Two equal cells have no variance; the gene's variance elsewhere says how little they tell."""
    rng = np.random.default_rng(0)
    cells = rng.normal(0, 1, (52, 1))
    cells[50:] = 0.3
    condition = np.repeat([0, 1], [50, 2])
    one = MeasuredEffects.measure(lambda rows: cells[rows], [spec(), spec("A")], condition, [()], np.zeros(52, dtype=int))
    assert 0.2 < one.noise[0, 0] < 0.6


def timed(rng, times, pairs_at, truth_factor=1.0):
    """Singles at `times`, whose effects grow with time, and pairs at `pairs_at` that add up (times `truth_factor`)."""
    full = rng.normal(size=(6, FEATURES))
    names = "ABCDEF"
    specs = [spec(name, time=time) for time in times for name in names]
    effects = [full[names.index(s.parts[0])] * s.time / max(times) for s in specs]
    for a in range(5):
        specs.append(spec(names[a], names[a + 1], time=pairs_at))
        effects.append(truth_factor * (full[a] + full[a + 1]) * pairs_at / max(times))
    return full, KrigedRule(measured(np.array(effects)[:, None], 1e-8, controls(rng, 1), specs))


def test_combinations_are_learnt_from_their_parts_at_the_same_time():
    """Pairs at 24 h whose parts were also measured at 6 h, where they do a quarter: they still add up."""
    rng = np.random.default_rng(0)
    full, rule = timed(rng, (6.0, 24.0), 24.0)
    assert rule.combinations.interactions.factor == pytest.approx(1.0, abs=0.01)
    predicted = rule.effect(spec("A", "F", time=24.0), ("c0",), np.ones(FEATURES))
    assert predicted == pytest.approx(full[0] + full[5], abs=0.1)


def test_a_combination_at_time_zero_does_nothing():
    rng = np.random.default_rng(0)
    _, rule = timed(rng, (12.0, 24.0), 24.0, truth_factor=0.5)
    assert rule.combinations.interactions.factor == pytest.approx(0.5, abs=0.05)
    assert np.abs(rule.effect(spec("A", "F", time=0.0), ("c0",), np.ones(FEATURES))).max() < 1e-6
    late = np.linalg.norm(rule.effect(spec("A", "F", time=24.0), ("c0",), np.ones(FEATURES)))
    assert np.linalg.norm(rule.effect(spec("A", "F", time=12.0), ("c0",), np.ones(FEATURES))) < 0.7 * late


def test_contexts_with_the_very_same_controls_give_numbers():
    rng = np.random.default_rng(0)
    control = np.tile(controls(rng, 1), (3, 1))
    rule = KrigedRule(measured(rng.normal(size=(1, 3, FEATURES)), 0.1, control))
    assert np.isfinite(rule.effect(spec("A"), ("c0",), control[0])).all()


def families(rng, n, strong):
    """Contexts of two families; one feature in ten (`strong`) answers in the first family only, all others alike with small deviations."""
    family = np.arange(n) % 2
    base = rng.normal(1, 1, (2, FEATURES))
    control = base[family] + rng.normal(0, 0.3, (n, FEATURES))
    effects = rng.normal(0, 0.3, FEATURES) + rng.normal(0, 0.1, (n, FEATURES))
    effects[:, ::10] = (strong * (family == 0))[:, None] + rng.normal(0, 0.1, (n, FEATURES // 10))
    return control, effects[None]


def test_strong_features_follow_the_most_similar_contexts_where_that_was_right_elsewhere():
    control, effects = families(np.random.default_rng(0), 9, 4.0)  # the last is of the first family
    rule = KrigedRule(measured(left_out(effects), 1e-3, control))
    without = KrigedRule(rule.measured)
    without.__dict__["similarity"] = np.zeros(2)
    assert rule.similarity[1] > 0.5
    mixed, kriged = (((r.effect(spec("A"), ("c8",), control[-1]) - effects[0, -1])[::10] ** 2).sum() for r in (rule, without))
    assert mixed < 0.7 * kriged


def test_a_measured_context_keeps_its_measurement_however_similar_others_are():
    control, effects = families(np.random.default_rng(0), 9, 4.0)
    rule = KrigedRule(measured(effects, 1e-3, control))
    without = KrigedRule(rule.measured)
    without.__dict__["similarity"] = np.zeros(2)
    assert rule.similarity[1] > 0
    assert np.array_equal(rule.effect(spec("A"), ("c0",), control[0]), without.effect(spec("A"), ("c0",), control[0]))


def test_with_few_contexts_similarity_has_no_say():
    control, effects = families(np.random.default_rng(0), 4, 4.0)
    assert KrigedRule(measured(effects[:, :3], 1e-3, control[:3])).similarity.tolist() == [0.0, 0.0]
