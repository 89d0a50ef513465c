"""Reading recipes: every error at once, each with its place, what is allowed and what was probably meant."""

import pytest
from pydantic import Field

from unlabeled.config import tables
from unlabeled.config.augment import AffineCrop, ResizedCrop
from unlabeled.config.files import find
from unlabeled.config.read import read_file, read_protocol, read_recipe
from unlabeled.config.recipe import Strict
from unlabeled.config.yaml.write import to_yaml
from unlabeled.errors import UserError


def lines_of(path, *overrides, **options):
    with pytest.raises(UserError) as caught:
        read_recipe(path, overrides, **options)
    return str(caught.value).splitlines()


def test_correct_recipe(recipe):
    found = read_recipe(recipe())
    assert type(found.method).__name__ == "Tiny"
    assert found.method.temperature == 0.2
    assert found.optim.weight_decay == 1e-6
    assert found.optim.betas == (0.9, 0.999)
    assert found.data.train.batch == 64


def test_all_errors_at_once_in_the_order_of_the_file(recipe):
    path = recipe(
        ("temperature: 0.2", "temperature: -1"), ("stem: cifar", "stem: cifr"), ("workers: 0", "worker: 0"),
        ("batch: 64", "batch: 1_000"), ("weight_decay: 1e-6", "weigth_decay: no"), ("epochs: 10", "epochs: 1e2"),
    )  # fmt: skip
    assert lines_of(path) == [
        "r.yaml:4: 'method.temperature' must be greater than 0, given -1",
        "r.yaml:5: 'backbone.stem' is 'cifr'; allowed: imagenet, cifar. Did you mean 'cifar'?",
        "r.yaml:7: unknown key 'data.worker'. Did you mean 'workers'?",
        "r.yaml:10: 'data.train.batch' needs a whole number, given '1_000'; write 1000",
        "r.yaml:14: unknown key 'optim.weigth_decay'. Did you mean 'weight_decay'?",
        "r.yaml:16: 'train.epochs' needs a whole number, given 100.0; write 100",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("workers: 0", "nesterov: true", "r.yaml:7: unknown key 'data.nesterov'. Did you mean 'optim.nesterov'?"),
        ("workers: 0", "zzz: 1",
         "r.yaml:7: unknown key 'data.zzz'. Known here: workers, max_corrupt, train, labeled, unlabeled"),
        ("name: lars", "name: lasr",
         "r.yaml:12: 'optim.name' is 'lasr'; allowed: lars, sgd, adamw, adamp. Did you mean 'lars'?"),
        ("  epochs: 10", "  epochs: 10\n  sync_bn: no",
         "r.yaml:17: 'train.sync_bn' needs true or false, given 'no'; write false"),
        ("  epochs: 10", "  epochs: 10\n  seed:", "r.yaml:17: 'train.seed' needs a whole number, given nothing"),
        ("  epochs: 10", "  epochs: 10\n  updates: 5",
         "r.yaml:15: train: give either epochs or updates; set the other to null"),
        ("batch: 64", "batch: '64'", "r.yaml:10: 'data.train.batch' needs a whole number, given '64'; write 64"),
        ("card: digits", "card: 7", "r.yaml:9: 'data.train.card' needs text, given 7; write '7' with quotes"),
        ("base: 0.3", "base: .nan", "r.yaml:13: 'optim.lr.base' needs a finite number, given nan"),
        ("scaling: linear", "scaling: sqrt", "r.yaml:13: optim.lr: 'per' goes with scaling: linear only"),
        ("lr: {base: 0.3, per: 256, scaling: linear}", "lr: 0.3",
         "r.yaml:13: 'optim.lr' needs a block of keys (base, table, scaling, per, ...), given 0.3"),
        ("name: lars", "name: adamw\n  betas: [0.9]",
         "r.yaml:13: 'optim.betas' has too few values: number 2 is missing"),
        ("name: lars", "name: adamw\n  betas: [1, 2, 3]", "r.yaml:13: 'optim.betas' needs at most 2 values, given 3"),
        ("name: lars", "name: lars\n  betas: [0.9, 0.99]",
         "'betas' has no effect with lars; it belongs to adamw and adamp"),
        ("train:\n  epochs: 10\n", "", "r.yaml:2: missing block 'train'"),
        ("lr: {base: 0.3, per: 256, scaling: linear}", "lr: {}", "r.yaml:13: optim.lr: give either base or table"),
        ("lr: {base: 0.3, per: 256, scaling: linear}", "lr: {table: [[20, 0.1], [10, 0.01]]}",
         "r.yaml:13: optim.lr: table holds pairs (end epoch, lr) with rising ends"),
        ("lr: {base: 0.3, per: 256, scaling: linear}", "lr: {table: [[20, 0.1]]}\n  schedule: cosine",
         "'schedule' has no effect with lr.table"),
        ("lr: {base: 0.3, per: 256, scaling: linear}", "lr: {table: [[20, 0.1]], final: 0.001}",
         "r.yaml:13: optim.lr: 'final' has no effect with table, which is the whole schedule"),
        ("scaling: linear}", "scaling: linear, final: 0.001}\n  schedule: constant",
         "r.yaml:11: optim: 'lr.final' has no effect with schedule: constant"),
        ("scaling: linear}", "scaling: linear, warmup_start: 10}",
         "r.yaml:13: 'optim.lr.warmup_start' must be at most 1, given 10"),
        ("batch: 64", "batch: 64\n    subset: {seed: 3}", "data.train.subset: give one of per_class, share and list"),
        ("  name: lars\n", "", "r.yaml:11: missing key 'optim.name'; allowed: lars, sgd, adamw, adamp"),
        ("temperature: 0.2", "sizes: []", "r.yaml:4: 'method.sizes' needs at least 1 values, given 0"),
        ("temperature: 0.2", "sizes: [1, x]", "r.yaml:4: 'method.sizes[1]' needs a whole number, given 'x'"),
        ("temperature: 0.2", "either: [1]", "r.yaml:4: 'method.either' needs a whole number or text, given [1]"),
        ("temperature: 0.2", "crop: {kind: afine}",
         "r.yaml:4: 'method.crop.kind' is 'afine'; allowed: resized, padded, square, paddle, affine. Did you mean "
         "'affine'?"),
        ("temperature: 0.2", "crop: {kind: affine}",
         "r.yaml:4: missing key 'method.crop.size' (side of the view, pixels)"),
        ("temperature: 0.2", "crop: {kind: affine, size: 8, sise: 2}",
         "unknown key 'method.crop.sise'. Did you mean 'size'?"),
        ("temperature: 0.2", "crop: 32", "r.yaml:4: 'method.crop' needs a block of keys, given 32"),
        ("  name: tiny\n", "", "r.yaml:2: missing key 'method.name'. Known: "),
        ("name: tiny", "name: tinny", "r.yaml:3: no method 'tinny'. Did you mean 'tiny'?"),
        ("name: tiny", "name: nowhere.at_all:Method", "r.yaml:3: 'nowhere.at_all:Method' cannot be imported"),
        ("method:\n  name: tiny\n  temperature: 0.2", "method: [tiny]",
         "r.yaml:2: 'method' needs a name or a block of keys, given ['tiny']"),
        ("  train:\n    card: digits\n    batch: 64\n", "",
         "r.yaml:6: method 'tiny' reads the streams: train; 'data' has: none"),
    ],
)  # fmt: skip
def test_one_error(recipe, old, new, message):
    (line,) = lines_of(recipe((old, new)))
    assert message in line


def test_misspelt_required_key_is_said_once(recipe):
    assert lines_of(recipe(("  epochs", "  epochs"), ("card: digits", "crad: digits"))) == [
        "r.yaml:9: unknown key 'data.train.crad'. Did you mean 'card'?"
    ]


def test_a_file_that_is_no_recipe(recipe, tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert lines_of("empty.yaml") == ["empty.yaml:1: the file is empty"]
    assert lines_of("list.yaml") == ["list.yaml:1: the file needs a block of keys, given [1]"]


def test_backbone_that_offers_too_little(recipe, monkeypatch):
    monkeypatch.setitem(tables.BACKBONES, "resnet18", ("nowhere:f", frozenset({"stages"})))
    (line,) = lines_of(recipe())
    says = "r.yaml:5: method 'tiny' needs a map backbone; 'resnet18' offers: stages. Map ones: resnet34, "
    assert line.startswith(says)


def test_a_backbone_outside_the_table_is_checked_later(recipe):
    changed = recipe(("resnet18, stem: cifar", "vit_tiny_patch16_224"))
    assert read_recipe(changed).backbone.name == "vit_tiny_patch16_224"


def test_method_by_its_name_alone(recipe):
    path = recipe(("method:\n  name: tiny\n  temperature: 0.2", "method: tiny"))
    assert read_recipe(path).method.temperature == 0.1
    assert read_recipe(path, ["method.temperature=0.5"]).method.temperature == 0.5
    assert read_recipe(recipe(), ["method=tiny"]).method.temperature == 0.1


def test_crop_kinds(recipe):
    assert read_recipe(recipe()).method.crop == ResizedCrop(size=32)
    assert read_recipe(recipe(), ["method.crop.size=48"]).method.crop == ResizedCrop(size=48)
    affine = read_recipe(recipe(), ["method.crop={kind: affine, size: 8, scale: [0.9, 1.1]}"]).method.crop
    assert affine == AffineCrop(kind="affine", size=8, scale=(0.9, 1.1))


def test_overrides_are_yaml_and_the_last_one_counts(recipe):
    found = read_recipe(recipe(), [
        "optim.weight_decay=1e-5", "optim.weight_decay=1.e-4", "data.train.root=$DATA/a b",
        "optim.exclude_decay=[no, bias]", "train.epochs=null", "train.updates=7", "eval.at_end=[]",
        "method.crop.size=16", "optim.lars={eta: 0.01}",
    ])  # fmt: skip
    assert found.optim.weight_decay == 1e-4
    assert found.data.train.root == "$DATA/a b"
    assert found.optim.exclude_decay == ["no", "bias"]
    assert (found.train.epochs, found.train.updates) == (None, 7)
    assert found.method.crop.size == 16
    assert found.optim.lars.eta == 0.01


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.weigth_decay=1",
         "override 'optim.weigth_decay=1': unknown key 'optim.weigth_decay'. Did you mean 'weight_decay'?"),
        ("weight_decay=1", "override 'weight_decay=1': unknown key 'weight_decay'. Did you mean 'optim.weight_decay'?"),
        ("train.sync_bn=on",
         "override 'train.sync_bn=on': 'train.sync_bn' needs true or false, given 'on'; write true"),
        ("optim.lars={eta: x}", "override 'optim.lars={eta: x}': 'optim.lars.eta' needs a number, given 'x'"),
        ("method.crop.size=3.5", "override 'method.crop.size=3.5': 'method.crop.size' needs a whole number, given 3.5"),
        ("data.train=null", "override 'data.train=null': 'data.train'"),
        ("data.train.root=[", "override 'data.train.root=[': a quote or bracket that is never closed"),
        ("optim.name.x=3", "override 'optim.name.x=3': 'optim.name' is 'lars', not a block of keys"),
        ("train.updates=3", "r.yaml:15 with override 'train.updates=3': train: give either epochs or updates; set the"),
        ("--lr", "'--lr' is not of the form key=value, such as optim.weight_decay=1e-6"),
        ("a..b=1", "'a..b=1' is not of the form key=value"),
        ("optim=", "override 'optim=': 'optim' needs a block of keys"),
    ],
)  # fmt: skip
def test_errors_in_overrides(recipe, override, message):
    if override == "data.train=null":  # allowed in itself; but then the method has no stream
        message = "r.yaml:6 with override 'data.train=null': method 'tiny' reads the streams: train; 'data' has: none"
    (line,) = lines_of(recipe(), override)
    assert line.startswith(message)


def test_all_malformed_overrides_at_once(recipe):
    assert len(lines_of(recipe(), "a", "b=[", "optim.name.x=1", "train.seed=1")) == 3


def test_an_override_mends_the_file(recipe):
    assert read_recipe(recipe(("epochs: 10", "epochs: ten")), ["train.epochs=10"]).train.epochs == 10


def test_named_cards_and_protocols_are_read_before_training(recipe, tmp_path):
    (tmp_path / "card.yaml").write_text("name: mine\nsource: {kind: folder}\nsplits: {train: {}}\n")
    (tmp_path / "bad.yaml").write_text("protocol: knn\ntemprature: 3\n")
    ends = ("  epochs: 10\n", "  epochs: 10\neval:\n  at_end: [bad, absent]\n")
    path = recipe(("card: digits", "card: card.yaml"), ends)
    assert read_recipe(path).data.train.card == "card.yaml"
    lines = lines_of(path, "data.train.split=trian", check_files=True)
    assert lines[0] == "r.yaml:18: bad.yaml:2: unknown key 'temprature'. Did you mean 'temperature'?"
    assert lines[1].startswith("r.yaml:18: no evaluation protocol 'absent'.")
    assert lines[2] == ("override 'data.train.split=trian': data card 'mine' has no split 'trian' (it has: train). "
                        "Did you mean 'train'?")


@pytest.mark.parametrize("protocol, needs", [("segmentation-linear", "masks"), ("segmentation-fcn", "masks"),
                                             ("detection-shapes", "boxes")])
def test_a_protocol_that_needs_annotations_is_refused_before_training(recipe, tmp_path, protocol, needs):
    text = find("eval", protocol).read_text().replace("card: shapes96\n", "")
    cards = {"plain": "", "own": "card: shapes96\n", "bare": "card: digits\n"}
    for name, card in cards.items():
        (tmp_path / f"{name}.yaml").write_text(text + card)
    shapes = "data.train.card=shapes96"
    for accepted in (["eval.at_end=[plain]", shapes], ["eval.at_end=[own]"], ["eval.at_end=[correspondence]"]):
        read_recipe(recipe(), accepted, check_files=True)
    for refused in (["eval.at_end=[plain]"], ["eval.at_end=[bare]", shapes]):
        [line] = lines_of(recipe(), *refused, check_files=True)
        assert line == (f"override '{refused[0]}': '{refused[0][13:-1]}' needs {needs}, which data card 'digits' has "
                        "not; leave it out, or copy the protocol, with a card of its own")


def test_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text("protocol: knn\nk: [20, 200]\n")
    (tmp_path / "q.yaml").write_text("protocol: knnn\n")
    assert read_protocol("p.yaml", ["temperature=0.1"]).temperature == 0.1
    with pytest.raises(UserError, match=r"^q.yaml:1: 'protocol' is 'knnn'; allowed: knn, .*\. Did you mean 'knn'\?$"):
        read_protocol("q.yaml")
    with pytest.raises(UserError, match=r"^override 'k=\[0\]': 'k\[0\]' must be greater than 0, given 0$"):
        read_protocol("p", ["k=[0]"])


class Part(Strict):
    n: int
    names: dict[str, int] = Field({}, description="any names")


class Whole(Strict):
    parts: list[Part]
    by_name: dict[str, Part] = Field({}, description="any names too")


def test_blocks_in_lists_and_under_free_names(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text("parts:\n- n: 1\n- m: 2\nby_name:\n  a: {n: 1, names: {x: y}}\n  b: {nn: 2}\n")
    with pytest.raises(UserError) as caught:
        read_file(path, Whole)
    assert [line.partition("w.yaml:")[2] for line in str(caught.value).splitlines()] == [
        "3: unknown key 'parts[1].m'. Known here: n, names",
        "3: missing key 'parts[1].n'",
        "5: 'by_name.a.names.x' needs a whole number, given 'y'",
        "6: unknown key 'by_name.b.nn'. Did you mean 'n'?",
    ]


@pytest.mark.parametrize(
    ("former", "schedule", "lr"),
    [
        ("cosine_1pct", "cosine", "warmup_start: 0.01, final: 1e-6"),
        ("cosine_7_16", "quarter_cosine", "portion: 0.875"),
        ("cosine_by_epoch", "cosine", "every: epoch, warmup_rule: (k+1)/w"),
    ],
)
def test_former_names_of_schedules_are_read_as_what_they_stood_for(recipe, former, schedule, lr):
    before = read_recipe(recipe(("scaling: linear}", f"scaling: linear}}\n  schedule: {former}")))
    now = read_recipe(recipe(("scaling: linear}", f"scaling: linear, {lr}}}\n  schedule: {schedule}")))
    assert before.optim.model_dump() == now.optim.model_dump()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scaling: linear}", "scaling: linear}\n  schedule: constant"),
        ("{base: 0.3, per: 256, scaling: linear}", "{table: [[3, 0.1]]}"),
        ("scaling: linear}", "scaling: linear, portion: 0.5, every: epoch}\n  schedule: linear"),
    ],
    ids=["constant", "table", "linear"],
)  # fmt: skip
def test_a_written_schedule_is_read_back(recipe, tmp_path, old, new):
    first = read_recipe(recipe((old, new)))
    (tmp_path / "again.yaml").write_text(to_yaml(first))
    assert read_recipe(tmp_path / "again.yaml") == first
