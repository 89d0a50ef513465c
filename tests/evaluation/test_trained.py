"""Protocols that train on top of a run: probes by SGD on one or several blocks, fine-tuning, classifiers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unlabeled.config.read import read_card, read_protocol, read_recipe
from unlabeled.data.sources.open import open_source
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.seeds import evaluate_seeds
from unlabeled.evaluation.trained import protocol_keys, recipe_on

SMALL = ["backbone.width=0.125", "train.epochs=null", "train.updates=30", "data.train.batch=16", "eval.every=0",
         "eval.at_end=[]", "optim.warmup_epochs=0", "optim.lr.base=0.01"]
QUICK = ["workers=0", "data.batch=64", "epochs=2", "optim.lr.base=0.5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "pretrained"
    assert train(read_recipe("demo/simclrv2", SMALL), folder).finished
    return folder


def test_the_sgd_probe_learns_leaves_the_network_alone_and_goes_on(run: Path, capsys) -> None:
    report = evaluate("linear-sgd", run, [*QUICK, "method.crop={area: [0.6, 1.0]}"])
    number = report["linear"]
    assert min(number.network["value"], number.random_init["value"]) > 2 * number.chance
    assert report["linear top-5"].network["value"] > number.network["value"]
    assert report["linear top-5"].chance > 4 * number.chance, "the five commonest classes"
    assert report.train.n == 1297 and report.test.n == 500
    folder = run / "eval" / report.name
    trained = load_run(folder)
    assert trained.recipe.method.crop.size == 12  # that of the network
    backbone = load_run(run).method.backbone.state_dict()
    frozen = trained.method.features.network.network.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in backbone.items())
    out = capsys.readouterr().out
    assert "finished after" in out and "load_state_dict" not in out, "the lines would not load a classifier"
    again = evaluate("linear-sgd", run, [*QUICK, "method.crop={area: [0.6, 1.0]}"])
    assert again.numbers == report.numbers and "is finished" in capsys.readouterr().out


def test_crops_have_the_networks_size_unless_the_protocol_gives_one(run: Path) -> None:
    digits = open_source(read_card("digits"), "train")
    sizes = [recipe_on(read_protocol("linear-sgd", [*QUICK, crop]), load_run(run), digits).method.crop.size
             for crop in ("method.crop={area: [0.6, 1.0]}", "method.crop={area: [0.6, 1.0], size: 20}")]
    assert sizes == [12, 20]


def test_several_blocks_are_probed_in_one_run_and_get_their_own_gradients(run: Path) -> None:
    heads = (
        "{a: {block: layer1, pool: 2, norm: true}, b: {kind: mlp, block: layer2, width: 8}, "
        "c: {kind: conv, block: layer3}}"
    )
    common = [*QUICK, "random_init=false", "epochs=1", "method.crop={kind: affine, size: 12}"]
    together = evaluate("linear-sgd", run, [*common, f"method.heads={heads}"])
    assert {n.name for n in together.numbers} == {f"{h}{t}" for h in "abc" for t in ("", " top-5")}
    assert all(n.random_init is None for n in together.numbers)


def test_few_labels_with_epochs_of_given_length(run: Path) -> None:
    few = "data.subset={per_class: 2, order: first}"
    settings = [few, "data.epoch_samples=640", "method.crop={kind: affine, size: 12}"]
    report = evaluate("linear-sgd", run, [*QUICK, "random_init=false", *settings])
    trained = load_run(run / "eval" / report.name)
    assert trained.update == 2 * 640 // 64
    with pytest.raises(UserError, match="per_class is 500"):
        evaluate("linear-sgd", run, [*QUICK, "data.subset={per_class: 500}", "method.crop={kind: affine, size: 12}"])


def test_a_run_that_trained_a_classifier_is_scored_by_it(run: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    recipe = ["data.train.card=digits", "data.train.batch=64", "train.updates=40", "eval.every=0", "data.workers=0",
              "optim.warmup_epochs=0", f"backbone={{init: '{run}:backbone+head1'}}",
              "method={name: finetune, crop: {kind: affine, size: 16}}"]
    assert train(read_recipe("cifar10/rotnet-cpu", recipe), tuned).finished
    report = evaluate("classify", tuned, ["workers=0"])
    assert report["classifier"].network["value"] > 50 > report["classifier"].chance
    assert report["classifier"].random_init is None
    assert [n.name for n in report.numbers] == ["classifier", "classifier top-5"]
    with pytest.raises(UserError, match=r"no classifier 'backbone' to score; its classifiers: classifier"):
        evaluate("classify", tuned, ["workers=0", "export=backbone"])
    assert evaluate("knn", tuned, ["workers=0", "k=[20]", "raw_pixels=false"]).export == "backbone"
    with pytest.raises(UserError, match=r"no classifier.*it has none"):
        evaluate("classify", run, ["workers=0"])


def test_a_checkpoint_is_refused(run: Path) -> None:
    checkpoint = next((run / "checkpoints").glob("*.pt"))
    with pytest.raises(UserError, match="give the run's folder"):
        evaluate("linear-sgd", checkpoint, QUICK)


def test_wrong_options_are_named_with_their_place() -> None:
    with pytest.raises(UserError, match=r"'method.heads.linear.kind' is 'lin'.*Did you mean 'linear'"):
        read_protocol("linear-sgd", ["method.heads.linear.kind=lin"])
    with pytest.raises(UserError, match=r"unknown key 'optim.lr.bas'. Did you mean 'base'"):
        read_protocol("linear-sgd", ["optim.lr.bas=3"])
    with pytest.raises(UserError, match=r"no method 'prob'\. Did you mean 'probe'"):
        read_protocol("linear-sgd", ["method.name=prob"])


def test_several_seeds_draw_labels_and_training_anew_and_give_an_interval(run: Path, capsys) -> None:
    settings = [*QUICK, "random_init=false", "epochs=1", "method.crop={kind: affine, size: 12}",
                "data.subset={per_class: 8}"]
    reports = evaluate_seeds("linear-sgd", run, settings, range(2))
    recipes = [load_run(run / "eval" / report.name).recipe for report in reports]
    assert [(r.train.seed, r.data.train.subset.seed) for r in recipes] == [(0, 0), (1, 1)]
    values = [report["linear"].network["value"] for report in reports]
    assert values[0] != values[1]
    printed = capsys.readouterr().out
    assert f"{sum(values) / 2:.1f} ±" in printed and "95 % interval" in printed
    with pytest.raises(UserError, match="draws nothing"):
        evaluate_seeds("knn", run, [], range(2))
    with pytest.raises(UserError, match=r"'seed=4' and --seeds"):
        evaluate_seeds("linear-sgd", run, ["seed=4"], range(2))


@pytest.mark.parametrize("settings, said", [
    (["data.batch=2000"], "data.batch is 2000, but an epoch holds only 1297 samples; use a smaller one, at "
     "most data.batch=1297"),
    (["data.batch=64", "data.subset={per_class: 2}"], "data.batch is 64, but an epoch holds only 20 samples"),
    (["data.batch=64", "epochs=1", "optim.warmup_epochs=2"], "optim.warmup_epochs 2 are 40 updates"),
])
def test_messages_name_the_keys_that_the_command_takes(run: Path, settings: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate("finetune", run, ["workers=0", "random_init=false", *settings])
    message = str(caught.value)
    assert message.startswith(said) and "data.train" not in message and "\n" not in message


def test_the_keys_of_the_recipe_become_those_of_the_protocol() -> None:
    text = "data.train.root=FOLDER data.train.card data.train.split data.train.batch data.workers=0 train.epochs"
    assert protocol_keys(text) == "root=FOLDER card train data.batch workers=0 epochs"
