"""What all probes share: the training set's scale against scikit-learn's, and how settings are written."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from unlabeled.config.protocols.vectors import FewLabels, Linear, Logistic
from unlabeled.engine.passes.features import Features
from unlabeled.evaluation.vectors import few_labels, linear, logistic
from unlabeled.evaluation.vectors.scores import Scale, accuracy, plain

CPU = torch.device("cpu")


def drawn(n: int, seed: int) -> torch.Tensor:
    return 5 + torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) * torch.tensor([1.0, 9.0, 1e-3])


def test_the_scale_is_scikit_learns() -> None:
    train, test = drawn(7, 0), drawn(4, 1)
    scaler = StandardScaler().fit(train.double().numpy())
    expected = torch.from_numpy(scaler.transform(test.double().numpy())).float()
    torch.testing.assert_close(Scale.of(train)(test), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(Scale.of(train)(train).std(0, correction=0), torch.ones(3), rtol=1e-3, atol=0)


def test_a_feature_that_never_changes_keeps_its_scale_whatever_rounding_says() -> None:
    train = torch.full((1000, 3), 1000.0)
    train[0, 1] = torch.nextafter(train[0, 1], torch.tensor(2000.0))
    train[:, 2] = 1000 + torch.arange(1000) % 2  # this one does change
    torch.testing.assert_close(Scale.of(train).std, torch.tensor([1.0, 1.0, 0.5]))


def test_few_labels_are_scikit_learns_mean_and_deviation_over_the_draws() -> None:
    """Standardised by all training images, not by the few of a draw; the deviation is that of a sample."""
    label = torch.arange(60) % 3
    train = Features(drawn(60, 2) + label[:, None], torch.arange(60), label)
    test = Features(drawn(90, 3) + (torch.arange(90) % 3)[:, None], torch.arange(90), torch.arange(90) % 3)
    score = few_labels.run(FewLabels(protocol="few-labels", labels_per_class=[4], draws=5), train, test, 3, CPU)
    scaler = StandardScaler().fit(train.x.double().numpy())
    x, scored = (scaler.transform(each.x.double().numpy()) for each in (train, test))
    values = []
    for rows in few_labels.draws(label.numpy(), train.index.numpy(), 4, 5, 0):
        model = LogisticRegression(max_iter=2000, tol=1e-9).fit(x[rows], label[rows].numpy())
        values.append(100 * model.score(scored, test.label.numpy()))
    assert score["logistic4@C1"].value == pytest.approx(torch.tensor(values).mean().item(), abs=0.5)
    assert score["logistic4@C1"].deviation == pytest.approx(torch.tensor(values).std().item(), abs=0.3)
    assert (score["logistic4@C1"].details["min"], score["logistic4@C1"].details["max"]) == (min(values), max(values))


def test_held_out_images_have_no_part_in_the_scale_by_which_a_setting_is_chosen() -> None:
    """One of them is enormous: seen by the scale, it would hide the feature that tells the class."""
    cfg = Linear(protocol="linear", lr=[0.03], weight_decay=[0.0], epochs=1, min_updates=60, held_out=0.3)
    label = torch.arange(100) % 2
    x = torch.stack([2.0 * label - 1, torch.randn(100, generator=torch.Generator().manual_seed(0))], 1)
    held = linear.hold_out(label.numpy(), cfg.held_out, cfg.seed)
    x[held[0], 0] *= 1e6
    _, held_out = linear.choose(cfg, x, label, 2, CPU)
    assert held_out == 100


def test_of_equally_good_settings_the_one_with_the_lower_loss_is_taken() -> None:
    label = torch.arange(40) % 2
    x = torch.stack([2.0 * label - 1, torch.zeros(40)], 1)
    for lr in ([0.001, 0.3], [0.3, 0.001]):
        cfg = Linear(protocol="linear", lr=lr, weight_decay=[0.0], epochs=1, min_updates=20)
        chosen, held_out = linear.choose(cfg, x, label, 2, CPU)
        assert (lr[chosen], held_out) == (0.3, 100)


def test_the_weight_decay_that_was_chosen_is_that_of_the_last_training() -> None:
    """So much of it that the bias alone answers, which does not decay: the larger class."""
    label = (torch.arange(80) % 4 == 0).long()
    told = Features(torch.stack([2.0 * label - 1, torch.zeros(80)], 1), torch.arange(80), label)
    for decay, expected in ((20.0, 75), (0.0, 100)):
        cfg = Linear(protocol="linear", lr=[0.03], weight_decay=[decay], epochs=1, min_updates=200)
        assert linear.run(cfg, told, told, 2, CPU)["linear"].value == expected


def test_settings_are_written_short_and_exact() -> None:
    assert [plain(x) for x in (0.07, 1, 1e-5, 20, 0.5, 1.5)] == [".07", "1", "1e-05", "20", ".5", "1.5"]
    assert accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0])) == pytest.approx(200 / 3)


def test_equal_accuracy_goes_to_the_smaller_c() -> None:
    label = torch.arange(60) % 2
    x = torch.stack([2.0 * label - 1, torch.zeros(60)], 1)
    told = Features(x, torch.arange(60), label)
    for c in ([0.1, 1.0], [1.0, 0.1]):
        score = logistic.run(Logistic(protocol="logistic", c=c), told, told, 2, CPU)["logistic"]
        assert (score.details["c"], score.details["held_out"], score.value) == (0.1, 100, 100)


def test_every_epoch_takes_every_image_once_in_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []

    def look(probe, settings, updates, draw, momentum) -> None:
        seen.extend(draw(update)[0][:, 0].int().tolist() for update in range(updates))

    monkeypatch.setattr(linear, "descend", look)
    cfg = Linear(protocol="linear", images_per_update=4, epochs=3, min_updates=1)
    linear.fit(cfg, torch.arange(12.0)[:, None], torch.zeros(12).long(), 2, [(0.1, 0.0)], CPU)
    epochs = [[row for batch in seen[first : first + 3] for row in batch] for first in (0, 3, 6)]
    assert len(seen) == 9 and all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
