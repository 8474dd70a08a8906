import numpy as np
import pandas as pd
import pytest
import torch

from counterflow import CounterFlow
from counterflow.conditions.courses import ANSWER_DROPOUT, CourseEncoder, Courses
from counterflow.conditions.vocabulary import Vocabulary
from counterflow.data.simulate import SMALL, simulate_screen
from counterflow.errors import ConfigError
from counterflow.types import COURSE, ConditionIds, ConditionSpec

NAMES, S, C = ("A", "B"), 3, 8
VOCABULARY = Vocabulary(NAMES, frozenset(NAMES), {}, {}, frozenset())


def spec(parts, dose=1.0, time=0.0):
    names = tuple(parts.split("+"))
    return ConditionSpec(names, (dose,) * len(names), time)


def courses(specs, axis="time"):
    effects = torch.arange(1.0, len(specs) * S + 1).reshape(len(specs), S)
    return Courses.measured(specs, effects, VOCABULARY, axis), effects


def encoder(specs, axis="time", randomise=lambda module: module, **options):
    torch.manual_seed(0)
    known, _ = courses(specs, axis)
    return randomise(CourseEncoder(torch.randn(2, 4), torch.ones(2, dtype=torch.bool), width=C, courses=known, **options)).eval()


def test_points_of_a_course_are_in_the_order_of_their_times():
    found, effects = courses([spec("A", time=3.0), spec("A+B", time=1.0), spec("A", time=1.0), spec("A", dose=5.0, time=1.0)])
    row, exists = found.of(*_asked(found, [spec("A"), spec("A+B"), spec("A", dose=5.0), spec("B")]))
    assert exists.tolist() == [True, True, True, False]
    assert found.at[row[:3]].tolist() == [[1.0, 3.0], [1.0, -1.0], [1.0, -1.0]]
    assert torch.equal(found.effect[row[0]], effects[[2, 0]])
    assert torch.equal(found.effect[row[2], 0], effects[3])


def test_without_times_they_are_in_the_order_of_doses_and_a_mixture_keeps_its_shares():
    specs = [spec("A", dose=10.0), spec("A", dose=1.0), ConditionSpec(NAMES, (1.0, 3.0)), ConditionSpec(NAMES, (10.0, 30.0))]
    found, effects = courses(specs, "dose")
    row, exists = found.of(*_asked(found, [spec("A", dose=4.0), ConditionSpec(NAMES, (2.0, 6.0)), ConditionSpec(NAMES, (2.0, 2.0))]))
    assert exists.tolist() == [True, True, False]
    torch.testing.assert_close(found.at[row[0]], torch.tensor([1.0, 10.0]).log1p())
    assert torch.equal(found.effect[row[1]], effects[2:])


def _asked(found, specs):
    ids = VOCABULARY.ids(specs, {})
    return ids.perturbation, found.place(ids)[0]


def test_the_token_changes_with_time_and_reads_what_came_before_only(randomise):
    known = [spec("A", time=1.0), spec("A", time=3.0)]
    network = encoder(known, randomise=randomise)

    def token(time):
        return network(VOCABULARY.ids([spec("A", time=time)], {})).tokens[0, COURSE].clone()

    early, between, late = token(0.5), token(2.0), token(4.0)
    assert (early - between).abs().max() > 1e-4 and (between - late).abs().max() > 1e-4
    network.course_effect[0, 1] += 1  # at 3
    assert torch.equal(token(0.5), early) and torch.equal(token(2.0), between) and not torch.equal(token(4.0), late)
    network.course_effect[0, 0] += 1  # at 1
    assert torch.equal(token(0.5), early) and not torch.equal(token(2.0), between)


def test_in_training_the_answer_is_seldom_shown_and_earlier_points_more_often(randomise):
    network = encoder([spec("A", time=1.0), spec("A", time=3.0)], randomise=randomise).train()
    n = 4000
    ids = VOCABULARY.ids([spec("A", time=3.0)] * n, {})

    def tokens():
        return network(ids, None, torch.Generator().manual_seed(0)).tokens[:, COURSE].clone()

    before = tokens()
    for point, shown in ((1, 1 - ANSWER_DROPOUT), (0, 0.5)):
        kept = network.course_effect[0, point].clone()
        network.course_effect[0, point] += 1
        changed = (tokens() != before).any(1).double().mean().item()
        assert changed == pytest.approx(shown, abs=0.04)
        network.course_effect[0, point] = kept


def test_time_enters_through_the_course_only(randomise):
    network = encoder([spec("A", time=1.0)], randomise=randomise)
    one, other = (network(VOCABULARY.ids([spec("A", time=time)], {})) for time in (2.0, 5.0))
    kept = [i for i in range(one.tokens.shape[1]) if i != COURSE]
    assert torch.equal(one.tokens[:, kept], other.tokens[:, kept])
    torch.testing.assert_close(one.pooled - one.tokens[:, COURSE], other.pooled - other.tokens[:, COURSE])


def test_the_control_and_time_zero_are_the_zero_of_the_state(randomise):
    network = encoder([spec("A", time=1.0)], randomise=randomise)
    ids = VOCABULARY.ids([ConditionSpec(), spec("A", time=0.0), spec("A", time=1.0)], {})
    state = network(ids).tokens[:, COURSE]
    assert (state[:2] == 0).all() and (state[2] != 0).any()


def test_the_null_has_no_history(randomise):
    network = encoder([spec("A", time=1.0)], randomise=randomise)
    ids, everyone = VOCABULARY.ids([spec("A", time=2.0)], {}), torch.ones(1, dtype=torch.bool)
    before = network(ids, everyone).tokens[:, COURSE].clone()
    network.course_effect += 1
    assert torch.equal(network(ids, everyone).tokens[:, COURSE], before)


def test_rows_of_a_shared_step_are_those_of_the_whole_step(randomise):
    network = encoder([spec("A", time=1.0), spec("A", time=3.0)], randomise=randomise).train()
    ids = VOCABULARY.ids([spec("A", time=float(t)) for t in range(1, 7)], {})
    own = torch.tensor([1, 4, 5])
    whole, part = (network(ids, None, torch.Generator().manual_seed(0), rows) for rows in (None, own))
    torch.testing.assert_close(whole.tokens[own], part.tokens)
    assert len(whole.tokens[:, COURSE].unique(dim=0)) > 3


def test_each_cell_is_encoded_on_its_own(randomise):
    network = encoder([spec("A", time=1.0), spec("A+B", time=3.0)], randomise=randomise)
    ids = VOCABULARY.ids([spec("A", time=2.0), spec("A+B", time=4.0), ConditionSpec()], {})
    together = network(ids)
    for i in range(3):
        alone = network(ConditionIds(*(column[i : i + 1] for column in ids)))
        torch.testing.assert_close(together.pooled[i : i + 1], alone.pooled)


# through the model


@pytest.fixture(scope="module")
def timed():
    return simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 3, "n_pairs": 1}, times=(1.0, 2.0, 4.0))


def fitted(screen, key="time", **options):
    adata = screen.adata.copy()
    adata.obs["split"] = np.where(adata.obs[key] == 2.0, "test", "train")
    CounterFlow.setup_anndata(adata, perturbation_key="perturbation", control="control", split_key="split", **{f"{key}_key": key})
    model = CounterFlow(adata, backbone="dynamics", backbone_kwargs={"size": "XS"}, space_kwargs={"n_components": 8}, **options)
    model.train(max_steps=10, progress=False)
    return model


def test_a_model_knows_the_courses_of_training_and_nothing_of_what_was_held_out(timed, tmp_path):
    model = fitted(timed)
    assert sorted(set(model.courses.at.flatten().tolist())) == [1.0, 4.0]
    assert model.rule is None
    assert model.audit().startswith("leak audit passed") and "courses" in model.audit()
    model.save(tmp_path / "model")
    loaded = CounterFlow.load(tmp_path / "model")
    asked = pd.DataFrame({"perturbation": [timed.conditions[0]], "time": [2.0]})
    controls = model.adata[model.adata.obs["perturbation"] == "control"][:5]
    before, after = (one.predict(controls, asked).layers["mean"] for one in (model, loaded))
    assert np.array_equal(before, after)


def test_the_embedding_of_a_perturbation_is_that_of_its_name_and_not_its_course(timed):
    model = fitted(timed)
    before = model.get_perturbation_embedding()
    assert before.to_numpy().std(0).max() > 1e-3
    model.module.encoder.course_effect += 1
    pd.testing.assert_frame_equal(model.get_perturbation_embedding(), before)


def test_over_doses(tmp_path):
    screen = simulate_screen(**SMALL | {"n_genes": 30, "n_perturbations": 3, "n_pairs": 1}, n_compounds=2, doses=(1.0, 2.0, 5.0))
    model = fitted(screen, "dose")
    assert model.module.encoder.course_axis == 1
    compound = next(name for name in screen.conditions if name.startswith("C"))
    low, high = (model.predict_effect(pd.DataFrame({"perturbation": [compound], "dose": [dose]}), interval=None) for dose in (0.5, 5.0))
    assert len(low) == len(high) == 30
    known = model.courses.at
    assert known.min() == -1 and torch.equal(model.module.encoder.course_at, known)  # the average of weights leaves it as it is
    model.save(tmp_path / "model")
    again = CounterFlow.load(tmp_path / "model")
    assert torch.equal(again.module.encoder.course_at, known) and torch.equal(again.courses.effect, model.courses.effect)


def test_what_it_needs_is_said(declared, timed):
    with pytest.raises(ConfigError, match="declare time_key or dose_key"):
        CounterFlow(declared, backbone="dynamics")
    with pytest.raises(ConfigError, match="anchor='additive' takes off"):
        fitted(timed, anchor="additive")
    with pytest.raises(ConfigError, match="history_dropuot"):
        fitted(timed, encoder_kwargs={"history_dropuot": 0.1})
