"""Terms of losses: each weight scales its own term, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import tiny_recipe, tiny_run

from unlabeled.engine.steps import make_step


def terms(method: str, variant: str, overrides: Sequence[str]) -> dict[str, float]:
    """Return the terms of the first update; the same weights and views whatever they weigh."""
    small = ["data.unlabeled.batch=6", "data.labeled.batch=4"] if method == "simmatchv2" else ["data.train.batch=6"]
    tiny = tiny_run(tiny_recipe(method, variant, [*small, *overrides]))
    views = tiny.updater.views(0, 0, tiny.micros(0)[0])
    if method == "simmatchv2":  # an empty bank gives no edges
        tiny.updater.method.unlabeled_bank.prob.fill_(0.1)
    losses = tiny.updater.method(views, make_step(tiny.updater.plan, 0, 0, 0, 0))
    return {name: float(term.detach()) for name, term in losses.terms.items()}


BYOL = "method.instance={{kind: byol, predictor_hidden: 16, weight: {}}}"
LAMBDAS = [[f"method.lambda_{name}={value}" for name, value in zip(("nn", "ee", "en"), values, strict=True)]
           for values in ((10, 10, 10), (3, 5, 7))]


@pytest.mark.parametrize(("method", "variant", "low", "high", "factors"), [
    ("pixpro", "instance", [BYOL.format(1.0)], [BYOL.format(2.5)], {"instance": 2.5}),
    ("distil", "labels", ["method.alpha=0.8"], ["method.alpha=0.4"], {"teacher": 0.5, "labels": 3.0}),
    ("feature-distil", "both", ["method.cells=0.5"], ["method.cells=2.0", "method.pooled=3.0"],
     {"cells": 4.0, "pooled": 3.0}),
    ("simmatchv2", "plain", *LAMBDAS, {"node_node": 0.3, "edge_edge": 0.5, "edge_node": 0.7}),
], ids=["instance", "alpha", "features", "lambdas"])  # fmt: skip
def test_a_weight_scales_its_term_and_no_other(method, variant, low, high, factors) -> None:
    before, after = (terms(method, variant, overrides) for overrides in (low, high))
    assert before.keys() == after.keys() >= factors.keys()
    for name, value in before.items():
        assert after[name] == pytest.approx(factors.get(name, 1.0) * value, rel=1e-5), name
        assert value != 0, name


def test_a_finetuned_classifier_and_a_projection_head_start_as_published() -> None:
    """Zero (arXiv 2006.10029 section 2), and a deviation of 0.01 that is an option."""
    tuned = tiny_run(tiny_recipe("finetune", "plain")).updater.method
    assert not any(bool(p.any()) for p in tuned.classifier.linear.parameters())
    for options, expected in ((), 0.01), (("method.head={init_std: 0.3}",), 0.3):
        method = tiny_run(tiny_recipe("simclrv2", "plain", options)).updater.method
        weights = torch.cat([layer[0].weight.flatten() for layer in method.head.layers])
        assert float(weights.std().detach()) == pytest.approx(expected, rel=0.05)


def test_both_views_are_normalised_together() -> None:
    """One pass: the running statistics are those of both views' maps, as if they were one batch."""
    tiny = tiny_run(tiny_recipe("simclrv2", "plain"), torch.float64)
    method, views = tiny.updater.method, tiny.updater.views(0, 0, tiny.micros(0)[0])
    both = torch.cat([views["view1"], views["view2"]]).double()
    with torch.no_grad():
        maps = method.backbone.conv1(both).transpose(0, 1).flatten(1)
    norm = method.backbone.bn1
    method({name: view.double() for name, view in views.items()}, make_step(tiny.updater.plan, 0, 0, 0, 0))
    torch.testing.assert_close(norm.running_mean, norm.momentum * maps.mean(1))
    torch.testing.assert_close(norm.running_var, 1 - norm.momentum + norm.momentum * maps.var(1))
    assert int(norm.num_batches_tracked) == 1 and int(method.head.layers[0][1].num_batches_tracked) == 1
