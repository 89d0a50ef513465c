"""Few-label logistic regression: scikit-learn's solution, and draws that the seed fixes."""

import numpy as np
import pytest
import torch

from unlabeled.config.protocols.vectors import FewLabels
from unlabeled.engine.passes.features import Features
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors import few_labels
from unlabeled.evaluation.vectors.scores import Scale

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    return Features(x[:1297], torch.arange(1297), y[:1297]), Features(x[1297:], torch.arange(500), y[1297:])


def config(**values) -> FewLabels:
    return FewLabels(**{"protocol": "few-labels"} | values)


@pytest.mark.parametrize("k", [1, 4, 20])  # fewer rows than features, and more
@pytest.mark.parametrize("c", [1.0, 0.05])
def test_solutions_are_scikit_learns(digits, k, c):
    from sklearn.linear_model import LogisticRegression

    train, test = digits
    scale = Scale.of(train.x)
    x, scored = scale(train.x), scale(test.x).double()
    rows = few_labels.draws(train.label.numpy(), train.index.numpy(), k, 3, 0)
    weight, bias = few_labels.logistic(x[rows], train.label[rows], 10, c)
    for draw, w, b in zip(rows, weight, bias, strict=True):
        model = LogisticRegression(C=c, max_iter=10_000, tol=1e-10)
        model.fit(x[draw].double().numpy(), train.label[draw].numpy())
        np.testing.assert_allclose(w.T.numpy(), model.coef_, atol=3e-4)
        np.testing.assert_allclose((scored @ w + b).numpy(), model.decision_function(scored.numpy()), atol=3e-3)


def test_the_scale_is_that_of_all_training_images(digits):
    """So the score does not depend on the order of their rows, even if the first ones lie elsewhere."""
    train, test = digits
    x = train.x.clone()
    x[:100] = 40 * x[:100] + 3
    moved = Features(x, train.index, train.label)
    turned = Features(x.flip(0), train.index.flip(0), train.label.flip(0))
    values = [few_labels.run(config(labels_per_class=[4], draws=2), each, test, 10, CPU) for each in (moved, turned)]
    assert values[0] == values[1]


def test_draws_are_fixed_by_the_seed_and_nested():
    label, index = np.repeat(np.arange(3), 40), np.arange(120)
    few, more = (few_labels.draws(label, index, k, 20, 0) for k in (1, 4))
    assert more.shape == (20, 12)
    assert torch.equal(more, few_labels.draws(label, index, 4, 20, 0))
    assert not torch.equal(more, few_labels.draws(label, index, 4, 20, 1))
    assert len({tuple(sorted(draw.tolist())) for draw in more}) == 20
    for small, large in zip(few, more, strict=True):
        assert set(small.tolist()) <= set(large.tolist())
        assert np.bincount(label[large], minlength=3).tolist() == [4, 4, 4]


def test_draws_take_the_same_images_however_the_rows_are_ordered():
    label, index = np.repeat(np.arange(3), 40), np.arange(120)
    order = np.random.default_rng(0).permutation(120)
    straight, turned = few_labels.draws(label, index, 4, 5, 0), few_labels.draws(label[order], index[order], 4, 5, 0)
    np.testing.assert_array_equal(straight.numpy(), order[turned.numpy()])


def test_mean_and_deviation_over_the_draws_rise_and_fall_with_more_labels(digits):
    scores = few_labels.run(config(labels_per_class=[1, 10], draws=8), *digits, 10, CPU)
    one, ten = scores["logistic1@C1"], scores["logistic10@C1"]
    assert 45 < one.value < 70 < ten.value < 95 and one.deviation > ten.deviation > 0
    assert one.details["draws"] == 8


def test_solving_in_groups_changes_nothing(digits, monkeypatch):
    expected = few_labels.run(config(labels_per_class=[2], draws=5), *digits, 10, CPU)
    monkeypatch.setattr(few_labels, "_ELEMENTS", 1)
    found = few_labels.run(config(labels_per_class=[2], draws=5), *digits, 10, CPU)
    assert found["logistic2@C1"].value == pytest.approx(expected["logistic2@C1"].value)


def test_equal_images_in_a_draw_are_no_problem():
    x = torch.ones(2, 6, 10).cumsum(2)
    weight, bias = few_labels.logistic(x, torch.tensor([0, 1, 2, 0, 1, 2]).expand(2, 6), 3, 1.0)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()


def test_too_few_labels_are_refused():
    with pytest.raises(UserError, match="4 labels per class are asked, but class 'cat' has 3"):
        config().check([9, 3], ["dog", "cat"])
