"""The linear probe: as good as scikit-learn's, honest in its choice, and one product for the whole grid."""

import numpy as np
import pytest
import torch

from unlabeled.config.protocols.vectors import Linear
from unlabeled.engine.passes.features import Features
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors import linear
from unlabeled.evaluation.vectors.scores import Scale

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:1297], order[1297:]
    return Features(x[train], train, y[train]), Features(x[test], test, y[test])


def config(**values) -> Linear:
    small = {"protocol": "linear", "lr": [0.003, 0.03, 0.3], "weight_decay": [0.0, 1e-3], "min_updates": 200}
    return Linear(**small | values)


def test_reaches_scikit_learns_logistic_regression_on_digits(digits):
    from sklearn.linear_model import LogisticRegressionCV

    train, test = digits
    score = linear.run(config(), train, test, 10, CPU)["linear"]
    scale = Scale.of(train.x)
    reference = LogisticRegressionCV(Cs=[0.01, 0.1, 1], cv=3, max_iter=500, use_legacy_attributes=False, l1_ratios=(0,),
                                     scoring="accuracy")
    reference.fit(scale(train.x).numpy(), train.label.numpy())
    assert score.value == pytest.approx(100 * reference.score(scale(test.x).numpy(), test.label.numpy()), abs=1.0)
    assert score.details["lr"] in config().lr


def test_a_grid_trained_at_once_equals_its_settings_trained_alone(digits):
    train, _ = digits
    settings = [(0.01, 0.0), (0.3, 1e-3), (0.03, 1e-2)]
    x = Scale.of(train.x)(train.x)
    together = linear.fit(config(min_updates=30), x, train.label, 10, settings, CPU)
    for number, setting in enumerate(settings):
        alone = linear.fit(config(min_updates=30), x, train.label, 10, [setting], CPU)
        torch.testing.assert_close(together(x)[:, number], alone(x)[:, 0], rtol=1e-4, atol=1e-4)


def test_an_update_is_that_of_torchs_sgd(digits):
    train, _ = digits
    x, label = Scale.of(train.x)(train.x)[:300], train.label[:300]
    cfg = config(images_per_update=300, min_updates=3, epochs=3)
    ours = linear.fit(cfg, x, label, 10, [(0.1, 0.01)], CPU)
    layer = torch.nn.Linear(64, 10)
    torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": 0.01}, {"params": [layer.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(x), label).backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(ours.weight.T, layer.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.bias, layer.bias.detach(), rtol=1e-4, atol=1e-6)


def test_the_choice_never_sees_the_test_set(digits, monkeypatch):
    train, test = digits
    expected = linear.run(config(), train, test, 10, CPU)["linear"]
    seen = []
    real = linear.choose

    def spy(cfg, x, label, *rest):
        seen.append((x, label))
        return real(cfg, x, label, *rest)

    monkeypatch.setattr(linear, "choose", spy)
    shuffled = Features(test.x, test.index, test.label.roll(1))
    score = linear.run(config(), train, shuffled, 10, CPU)["linear"]
    assert score.details == expected.details and score.value < 30
    assert len(seen) == 1 and torch.equal(seen[0][0], train.x) and torch.equal(seen[0][1], train.label)


def test_held_out_rows_are_stratified_seeded_and_leave_every_class_something():
    label = np.repeat([0, 1, 2, 3], [100, 30, 2, 1])
    held = linear.hold_out(label, 0.1, 0)
    assert np.bincount(label[held], minlength=4).tolist() == [10, 3, 1, 0]
    np.testing.assert_array_equal(held, linear.hold_out(label, 0.1, 0))
    assert not np.array_equal(held, linear.hold_out(label, 0.1, 1))


def test_features_that_never_change_do_no_harm(digits):
    train, test = digits
    dead = [Features(torch.cat([f.x, torch.full((len(f.x), 3), 7.0)], 1), f.index, f.label) for f in (train, test)]
    assert linear.run(config(), *dead, 10, CPU)["linear"].value > 90


def test_the_end_of_the_grid_is_named(digits):
    train, test = digits
    assert "note" in linear.run(config(lr=[1e-5, 1e-4]), train, test, 10, CPU)["linear"].details


def test_too_few_images_are_refused():
    with pytest.raises(UserError, match="no class has two"):
        config().check([1, 1, 0], ["a", "b", "c"])


def test_some_rows_are_standardised_by_their_own_statistics_and_seen_alone(digits):
    train, _ = digits
    rows = np.flatnonzero(np.arange(len(train.x)) % 3 > 0)
    spoilt = train.x.clone()
    spoilt[np.setdiff1d(np.arange(len(train.x)), rows)] = 1e3
    probe, scale = linear.fit_rows(config(), spoilt, train.label, rows, 10, [(0.03, 0.0)], CPU)
    alone = Scale.of(train.x[rows])
    torch.testing.assert_close(scale.mean, alone.mean)
    torch.testing.assert_close(scale.std, alone.std)
    expected = linear.fit(config(), alone(train.x[rows]), train.label[rows], 10, [(0.03, 0.0)], CPU)
    torch.testing.assert_close(probe.weight, expected.weight, rtol=1e-4, atol=1e-5)


def test_a_scale_is_that_of_all_rows_at_once():
    x = torch.randn(9001, 3, dtype=torch.float64).float() * 5 + 100
    x[:, 2] = 7.0  # never changes, and keeps its scale
    scale = Scale.of(x)
    torch.testing.assert_close(scale.mean, x.double().mean(0).float())
    torch.testing.assert_close(scale.std[:2], x.double().std(0, correction=0).float()[:2])
    assert scale.std[2] == 1
