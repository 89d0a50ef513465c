"""The protocol files, their types and their runners fit together."""

from importlib import import_module
from typing import get_args

import pytest

from unlabeled.config.chain import Chain
from unlabeled.config.files import find, listing
from unlabeled.config.protocols import all as protocols
from unlabeled.config.read import read_file, read_protocol, read_recipe
from unlabeled.config.tables import PROTOCOLS
from unlabeled.errors import UserError
from unlabeled.evaluation.chain import check


def test_every_type_has_a_runner_and_every_runner_a_type():
    types = get_args(get_args(protocols.AnyProtocol)[0])
    names = {get_args(kind.model_fields["protocol"].annotation)[0] for kind in types}
    # these two score classifiers, one after training it, and have no runner on cached features
    assert names == {*PROTOCOLS, "classify", "trained"}
    for runner in PROTOCOLS.values():
        module, _, function = runner.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", listing("eval"))
def test_every_file_is_a_protocol(name):
    read_protocol(name)


@pytest.mark.parametrize("name", [name for name in listing("recipes") if not name.startswith("chains/")])
def test_every_recipe_names_cards_and_protocols_that_exist(name):
    read_recipe(name, check_files=True)


@pytest.mark.parametrize("name", [name for name in listing("recipes") if name.startswith("chains/")])
def test_every_chain_holds_together(name):
    check(read_file(find("recipes", name), Chain))


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        read_protocol("liner")


@pytest.mark.parametrize("name, override, said", [
    ("finetune", "batch=64", "override 'batch=64': 'batch' has no effect with protocol 'trained': its images per "
     "update are 'data.batch'"),
    ("linear-sgd", "batch=64", "'data.batch'"),
    ("knn", "seed=1", "override 'seed=1': 'seed' has no effect with protocol 'knn': it draws nothing"),
    ("classify", "seed=1", "it draws nothing"),
    ("retrieval", "seed=1", "'seed' has no effect with protocol 'retrieval': it draws nothing"),
    ("correspondence", "clip.count=2", "'clip' has no effect with protocol 'correspondence': it is for networks for "
     "images"),
    ("detection-shapes", "clip={frames: 1}", "'clip' has no effect with protocol 'detection'"),
    ("correspondence", "train=val", "'train' has no effect with protocol 'correspondence'"),
    ("finetune", "data.batc=64", "unknown key 'data.batc'. Did you mean 'batch'?"),
    ("finetune", "data.train.batch=64", "unknown key 'data.train'"),
    ("finetune", "train.epochs=3", "'train' needs text, given a block of keys"),
    ("knn", "temprature=1", "Did you mean 'temperature'?"),
    ("knn", "epochs=3", "unknown key 'epochs'"),
    ("linear", "k=[3]", "unknown key 'k'"),
])
def test_overrides_without_effect_are_refused(name, override, said):
    with pytest.raises(UserError) as caught:
        read_protocol(name, [override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_file_says_of_a_shared_key_stays_allowed(tmp_path):
    (tmp_path / "own.yaml").write_text("protocol: knn\nseed: 3\n")
    assert read_protocol(tmp_path / "own.yaml").seed == 3
