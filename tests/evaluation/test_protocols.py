"""The protocol files, their types and their runners fit together."""

from importlib import import_module
from typing import get_args

import pytest

from unlabeled.config import protocol
from unlabeled.config.files import listing
from unlabeled.config.read import read_protocol
from unlabeled.config.tables import PROTOCOLS
from unlabeled.errors import UserError


def test_every_type_has_a_runner_and_every_runner_a_type():
    types = get_args(get_args(protocol.AnyProtocol)[0])
    names = {get_args(kind.model_fields["protocol"].annotation)[0] for kind in types}
    assert names == set(PROTOCOLS)
    for runner in PROTOCOLS.values():
        module, _, function = runner.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", ["knn", "linear", "few-labels"])
def test_files_state_the_defaults(name):
    assert name in listing("eval")
    cfg = read_protocol(name)
    assert cfg == type(cfg)(protocol=name)


def test_an_unknown_protocol_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        read_protocol("liner")
