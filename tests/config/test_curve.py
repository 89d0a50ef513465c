"""Curves in recipes: what is refused with which words, what is written, and where a number stays a number."""

import pytest
from pydantic import TypeAdapter, ValidationError

from unlabeled.config.base.curve import CurveRule, Decay, Momentum, Temperature, curves
from unlabeled.config.read import read_recipe
from unlabeled.config.schema import recipe_schema
from unlabeled.errors import UserError
from unlabeled.methods.pixpro_config import PixProConfig
from unlabeled.methods.simclrv2_config import SimCLRv2Config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("-1", "'optim.weight_decay' must be at least 0, given -1"),
        (".inf", "'optim.weight_decay' needs a finite number, given inf"),
        ("'0.1'", "'optim.weight_decay' needs a number, given '0.1'; write 0.1"),
        ("{}", "optim.weight_decay: give either start or table"),
        ("{end: 0.4}", "optim.weight_decay: give either start or table"),
        ("{start: 0.04, table: [[1, 0.1]]}", "optim.weight_decay: give either start or table"),
        ("{start: 0.04}", "optim.weight_decay: give end too, or shape: constant"),
        ("{start: 0.04, ennd: 0.4}", "unknown key 'optim.weight_decay.ennd'. Did you mean 'end'?"),
        ("{start: 0.04, end: 0.4, shape: linaer}", "'optim.weight_decay.shape' is 'linaer'; allowed: cosine"),
        ("{start: 0.04, end: 0.4, shape: constant}", "optim.weight_decay: 'end' has no effect with shape: constant"),
        ("{start: 0.04, shape: constant, every: epoch}", "'every' has no effect with shape: constant"),
        ("{start: 0.04, end: -0.4}", "optim.weight_decay: 'end' must be at least 0, given -0.4"),
        ("{start: -0.04, end: 0.4}", "optim.weight_decay: 'start' must be at least 0, given -0.04"),
        ("{start: 0.04, end: .nan}", "'optim.weight_decay.end' needs a finite number, given nan"),
        ("{start: 0.04, end: 0.4, portion: 2}", "'optim.weight_decay.portion' must be at most 1, given 2"),
        ("{start: 0.04, end: 0.4, warmup_epochs: -1}", "'optim.weight_decay.warmup_epochs' must be at least 0"),
        ("{start: 0.04, end: 0.4, warmup_epochs: 2}", "optim.weight_decay: give warmup_start too"),
        ("{start: 0.04, end: 0.4, warmup_start: 0}", "'warmup_start' has no effect without warmup_epochs"),
        ("{start: 0.04, end: 0.4, count_from: start}", "'count_from' has no effect without warmup_epochs"),
        ("{start: 0.04, end: 0.4, warmup_epochs: 2, warmup_start: -1}", "'warmup_start' must be at least 0, given -1"),
        ("{table: [[2, 0.1], [1, 0.2]]}", "optim.weight_decay: table holds pairs (end epoch, value) with rising ends"),
        ("{table: [[0, 0.1]]}", "optim.weight_decay: table holds pairs (end epoch, value) with rising ends above 0"),
        ("{table: [[1, -0.1]]}", "optim.weight_decay: 'table' must be at least 0, given -0.1"),
        ("{table: [[1, .inf]]}", "'optim.weight_decay.table[0][1]' needs a finite number, given inf"),
        ("{table: [[1, 0.1]], every: epoch}", "'every' has no effect with table, which is the whole curve"),
    ],
)
def test_what_no_curve_of_the_weight_decay_may_be(recipe, given, message):
    with pytest.raises(UserError) as caught:
        read_recipe(recipe(), [f"optim.weight_decay={given}"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [(Decay, (0, 5), (-1e-9,)), (Momentum, (0, 1), (-1e-9, 1.001)), (Temperature, (1e-9, 5), (0, -1))],
    ids=["decay", "momentum", "temperature"],
)
def test_a_curve_may_nowhere_be_what_the_number_may_not(kind, good, bad):
    reader = TypeAdapter(kind)
    forms = [
        lambda x: x,
        lambda x: {"start": x, "end": good[1]},
        lambda x: {"start": good[1], "end": x},
        lambda x: {"start": good[1], "shape": "constant", "warmup_epochs": 1, "warmup_start": x},
        lambda x: {"table": [(1, good[1]), (2, x)]},
    ]
    for form in forms:
        for value in good:
            reader.validate_python(form(value))
        for value in bad:
            with pytest.raises(ValidationError):
                reader.validate_python(form(value))


def test_the_curves_of_a_recipe_are_found_with_their_keys(recipe):
    found = read_recipe(recipe(), ["optim.weight_decay={start: 0.04, end: 0.4}"])
    assert list(curves(found)) == [("optim.weight_decay", CurveRule(start=0.04, end=0.4))]
    contrast = {"start": 0.3, "end": 0.1}
    pixpro = PixProConfig(pixel={"kind": "contrast", "temperature": contrast}, key_momentum={"table": [(1, 0.9)]})
    assert [key for key, _ in curves(pixpro, "method")] == ["method.pixel.temperature", "method.key_momentum"]
    memory = SimCLRv2Config(memory={"decay": {"start": 0.9, "end": 1}})
    assert dict(curves({"a": [memory]}, "x")) == {"x.a.0.memory.decay": CurveRule(start=0.9, end=1)}
    assert not list(curves(read_recipe(recipe())))


def test_the_schema_knows_both_forms():
    schema = recipe_schema()["$defs"]
    number, curve = schema["Optim"]["properties"]["weight_decay"]["oneOf"]
    assert (number, curve) == ({"minimum": 0, "type": "number"}, {"$ref": "#/$defs/CurveRule"})
    assert set(schema["CurveRule"]["properties"]) == set(CurveRule.model_fields)
