"""Numbers on images that were learnt from: kNN leaves each out, everything else says so, in the table and its file."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.fakes import FakeRuns

from unlabeled.cli.main import main
from unlabeled.config.read import read_recipe
from unlabeled.engine.build import method_class
from unlabeled.engine.passes.features import Features
from unlabeled.engine.restore import Restored
from unlabeled.engine.run import progress
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation import evaluate as module
from unlabeled.evaluation.evaluate import evaluate, evaluate_many
from unlabeled.evaluation.setup import other_cards
from unlabeled.evaluation.vectors import knn as knn_module
from unlabeled.evaluation.vectors.knn import own_rows

QUICK = ["workers=0", "random_init=false"]


@pytest.fixture
def runs(monkeypatch, tmp_path) -> FakeRuns:
    fake = FakeRuns("digits", tmp_path / "run")
    monkeypatch.setattr(module, "load_run", fake)
    return fake


def noise(folder, count, seed):
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def test_knn_on_the_training_split_leaves_the_image_itself_out(runs, tmp_path, capsys):
    for kind in range(2):  # noise of two classes: with the image itself k=1 is 100 %, without it chance
        noise(tmp_path / "set" / "train" / str(kind), 100, kind)
    report = evaluate("knn", runs.run, ["card=classfolder", f"root={tmp_path / 'set'}", "test=train", "k=[1]", *QUICK])
    number = report["knn1@.07"]
    assert 30 < number.network["value"] < 70 and 30 < number.raw_pixels["value"] < 70
    printed = capsys.readouterr().out
    assert "200, all in train" in printed and "test 'train' is the training split: each is left out" in printed
    saved = json.loads((runs.run / "eval" / f"{report.name}-update00000012.json").read_text())
    assert saved["shared"] == 200 and "training split" in saved["cautions"][0]


def test_an_image_that_cannot_be_read_does_not_shift_which_is_left_out(runs, tmp_path, capsys):
    for kind in range(2):
        noise(tmp_path / "set" / "train" / str(kind), 100, kind)
    (tmp_path / "set" / "train" / "0" / "000.png").write_bytes(b"no image")
    report = evaluate("knn", runs.run, ["card=classfolder", f"root={tmp_path / 'set'}", "test=train", "k=[1]",
                                        "max_corrupt=1", *QUICK])
    assert report.test.n == 199 and 30 < report["knn1@.07"].network["value"] < 70
    assert "unreadable 2, seed 0" in capsys.readouterr().out, "of train and test together"


def test_protocols_with_different_test_splits_do_not_share_one(runs, tmp_path):
    for name in ("val", "train"):
        (tmp_path / f"{name}.yaml").write_text(
            f"protocol: knn\nk: [5]\ntest: {name}\nrandom_init: false\nraw_pixels: false\nworkers: 0\n"
        )
    held, own = evaluate_many([tmp_path / "val.yaml", tmp_path / "train.yaml"], runs.run)
    assert (held.test.n, own.test.n) == (500, 1297)
    assert not held.cautions and own.cautions


def test_a_test_split_inside_the_training_split_is_counted(runs, tmp_path, capsys):
    for kind in "ab":
        noise(tmp_path / "set" / "train" / kind, 30, ord(kind))
        noise(tmp_path / "set" / "val" / kind, 5, 100 + ord(kind))
        for number in range(3):
            (tmp_path / "set" / "val" / kind / f"x{number}.png").symlink_to(
                tmp_path / "set" / "train" / kind / f"{number:03d}.png")
    where = ["card=classfolder", f"root={tmp_path / 'set'}"]
    report = evaluate("knn", runs.run, [*where, "k=[1]", *QUICK])
    assert report.shared == 6 and report.test.n == 16
    printed = capsys.readouterr().out
    assert "16, 6 in train" in printed
    assert "note: 6 of the 16 test images of 'val' stand in the training split 'train' too: each is left" in printed


@pytest.mark.parametrize("protocol, settings", [
    ("linear", ["lr=[0.1]", "weight_decay=[0.0]", "min_updates=20", "epochs=1"]),
    ("logistic", ["c=[0.1]"]),
    ("few-labels", ["labels_per_class=[1]", "draws=2"]),
])
def test_probes_say_that_the_test_images_were_learnt(runs, capsys, protocol, settings):
    report = evaluate(protocol, runs.run, ["test=train", *settings, "raw_pixels=false", *QUICK])
    assert report.shared == 1297
    assert "note: test 'train' is the training split: the numbers tell how well these were learnt" in (
        capsys.readouterr().out)


def test_nothing_is_said_where_nothing_is_shared(runs, capsys):
    report = evaluate("knn", runs.run, ["raw_pixels=false", *QUICK])
    assert report.shared == 0 and report.cautions == [] and "note:" not in capsys.readouterr().out


def test_the_split_that_the_run_was_trained_on_is_named(runs, monkeypatch, capsys, tmp_path):
    fake = FakeRuns("digits", tmp_path / "other", split="val")
    monkeypatch.setattr(module, "load_run", fake)
    report = evaluate("knn", fake.run, ["raw_pixels=false", *QUICK])
    assert report.shared == 0
    assert "note: the run itself was trained on test 'val' (data.train)" in capsys.readouterr().out


def test_a_set_of_the_same_name_elsewhere_is_not_what_the_run_was_trained_on(tmp_path, monkeypatch):
    class Rooted(FakeRuns):
        def __call__(self, *args, **options):
            restored = super().__call__(*args, **options)
            stream = restored.recipe.data.train.model_copy(update={"root": str(tmp_path / "here")})
            data = restored.recipe.data.model_copy(update={"train": stream})
            return replace(restored, recipe=restored.recipe.model_copy(update={"data": data}))

    monkeypatch.setattr(module, "load_run", Rooted("classfolder", tmp_path / "run"))
    for place, count in (("here", 1), ("there", 0)):
        for split, kind in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
            noise(tmp_path / place / split / kind, 4, ord(kind))
        report = evaluate("knn", tmp_path / "run", ["card=classfolder", f"root={tmp_path / place}", "k=[1]",
                                                    "test=train", "train=val", *QUICK])
        assert sum("the run itself was trained on" in line for line in report.cautions) == count


def test_k_may_take_all_images_but_the_one_itself(runs):
    with pytest.raises(UserError, match=r"k is 1297, but there are 1296 labelled training images; use k=\[20\]"):
        evaluate("knn", runs.run, ["test=train", "k=[20,1297]", *QUICK])
    evaluate("knn", runs.run, ["test=train", "k=[1296]", "raw_pixels=false", *QUICK])


def test_rows_of_the_images_themselves_follow_those_that_are_left_out():
    train = Features(torch.zeros(3, 2), torch.tensor([1, 4, 6]), torch.tensor([0, 1, 0]))  # 0, 2, 3, 5 are unreadable
    twin = torch.tensor([4, -1, 2, 1, 9])
    test = Features(torch.zeros(5, 2), torch.arange(5), torch.zeros(5).long(), [], twin)
    assert own_rows(train, test).tolist() == [1, -1, -1, 0, -1]
    assert own_rows(train, Features(test.x, test.index, test.label)) is None


def small(tmp_path, counts, seed=0):
    """Write train with `counts` images of each class and val with one image of each."""
    for split, numbers in (("train", counts), ("val", [1] * len(counts))):
        for kind, count in enumerate(numbers):
            noise(tmp_path / "small" / split / str(kind), count, 1000 * seed + 10 * kind + (split == "val"))
    return ["card=classfolder", f"root={tmp_path / 'small'}", *QUICK]


@pytest.mark.parametrize("counts", [[1], [2], [3], [1, 1], [2, 1], [1, 1, 1], [3, 2]])
@pytest.mark.parametrize("test", ["val", "train"])
def test_small_sets_give_a_number_or_one_line(runs, tmp_path, counts, test):
    where = [*small(tmp_path, counts), f"test={test}"]
    settings = {"knn": ["k=[1]"], "linear": ["min_updates=5", "epochs=1"], "logistic": [], "few-labels": ["draws=2"]}
    for protocol, more in settings.items():
        try:
            report = evaluate(protocol, runs.run, [*where, *more])
        except UserError as error:
            assert "\n" not in str(error) and "image" in str(error)
        else:
            assert all(np.isfinite(number.network["value"]) for number in report.numbers) and report.numbers


def test_one_protocol_that_cannot_run_does_not_take_the_numbers_of_the_others(runs, tmp_path, capsys):
    where = [*small(tmp_path, [4, 4])]
    with pytest.raises(UserError, match=r"^knn-classfolder: k is 200, but there are 8 labelled training images"):
        evaluate_many(["knn", "logistic"], runs.run, where)
    assert "logistic" in capsys.readouterr().out
    assert [path.name.partition("-")[0] for path in (runs.run / "eval").iterdir()] == ["logistic"]


def test_images_that_cannot_be_read_do_not_leave_a_protocol_without_any(runs, tmp_path):
    where = [*small(tmp_path, [3, 3]), "max_corrupt=1"]
    for kind in "01":
        (tmp_path / "small" / "val" / kind / "000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 2 images cannot be read, so none is left"):
        evaluate("knn", runs.run, [*where, "k=[1]"])


def photos_and_digits(tmp_path, *extra):
    """A SimMatchV2 run with labels of the digits beside a folder of unlabelled images."""
    noise(tmp_path / "photos", 60, 0)
    recipe = read_recipe("demo/simmatchv2", [
        "data.unlabeled.card=folder", f"data.unlabeled.root={tmp_path / 'photos'}", "data.unlabeled.batch=12",
        "data.labeled.batch=4", "train.epochs=null", "train.updates=2", "optim.warmup_epochs=0", "data.workers=0",
        "method.bank=24", "method.topn=5", "backbone.width=0.125", *extra])
    run = tmp_path / "run"
    assert train(recipe, run).finished
    return run


def test_a_labelled_and_an_unlabelled_card_are_scored_on_the_labelled_one(tmp_path, capsys):
    run = photos_and_digits(tmp_path)
    assert "no accuracy is measured: split 'train' of 'folder' has no labels" in capsys.readouterr().out
    report = evaluate("classify", run, ["workers=0"])
    assert report.card == "digits" and report.test.split == "val" and report.numbers
    printed = capsys.readouterr().out
    assert ("scored on data card 'digits', which data.labeled reads; data.unlabeled reads 'folder': card=folder "
            f"root={tmp_path / 'photos'} measures its features without a score: it has no split test or val") in printed
    report = evaluate("knn", run, ["card=folder", f"root={tmp_path / 'photos'}", *QUICK])
    assert report.name == "health" and "scored on data card" not in (out := capsys.readouterr().out)
    assert "data 'folder' has no labels" in out and "card=CARD root=FOLDER scores on another set" in out


@pytest.mark.parametrize(("mix", "said"), [
    ("{card: folder, root: p}, {card: digits, labels: false}",
     "scored on data card 'digits', which data.train reads; data.train reads 'folder': card=folder root=p measures its "
     "features without a score: it has no split test or val"),
    ("{card: digits, labels: false}, {card: cifar10}",
     "scored on data card 'digits', which data.train reads; data.train reads 'cifar10': card=cifar10 scores on that "
     "instead"),
    ("{card: folder, root: p}, {card: folder, root: q}",
     "measured without a score on data card 'folder', which data.train reads; data.train reads 'folder': card=folder "
     "root=q measures its features without a score: it has no split test or val"),
    ("{card: digits}, {card: digits, split: val}", None),
])
def test_of_a_mix_is_said_what_is_scored(mix, said):
    recipe = read_recipe("demo/ssld", [f"data.train={{mix: [{mix}], batch: 16}}"])
    method = method_class(recipe)
    restored = Restored(recipe, method.__new__(method), 1, Path("run"))
    assert other_cards(restored) == said


def test_an_array_that_two_splits_name_is_one_split(runs, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "train.npz", images=rng.integers(0, 256, (40, 8, 8, 3), np.uint8),
             labels=np.arange(40) % 2)
    (tmp_path / "card.yaml").write_text(
        f"name: own\nsource: {{kind: array}}\nroot: {tmp_path / 'set'}\nclasses: [a, b]\n"
        "splits: {train: {}, val: {path: train.npz}}\n")
    report = evaluate("knn", runs.run, [f"card={tmp_path / 'card.yaml'}", "k=[1]", *QUICK])
    assert report.shared == 40 and report["knn1@.07"].network["value"] < 80


def test_numbers_are_shown_before_they_are_written(runs, monkeypatch, capsys):
    def full(report, folder):
        raise UserError("the disk is full")

    monkeypatch.setattr(module.Report, "write", full)
    with pytest.raises(UserError, match="the disk is full"):
        evaluate("knn", runs.run, ["raw_pixels=false", *QUICK])
    assert "knn200@.07" in capsys.readouterr().out


def test_health_is_shown_where_no_picture_can_be_written(runs, monkeypatch, tmp_path, capsys):
    def full(*arguments):
        raise UserError("the disk is full")

    monkeypatch.setattr(module, "draw_neighbours", full)
    noise(tmp_path / "photos", 5, 0)
    evaluate("knn", runs.run, ["card=folder", f"root={tmp_path / 'photos'}", *QUICK])
    printed = capsys.readouterr().out
    assert "effective rank" in printed and "no picture of nearest neighbours: the disk is full" in printed


def test_a_long_extraction_and_search_are_told_of(runs, monkeypatch, capsys):
    monkeypatch.setattr(progress, "PASS_AFTER", 0.0)
    monkeypatch.setattr(knn_module, "_AT_ONCE", 100)
    evaluate("knn", runs.run, ["raw_pixels=false", "batch=100", *QUICK])
    printed = capsys.readouterr().out
    assert "features of 'train' of 'digits': 100 of 1297 images, " in printed and "kNN: 100 of 500 images, " in printed


@pytest.mark.parametrize(("protocol", "settings", "told"), [
    ("linear", ["lr=[0.1]", "weight_decay=[0.0]", "min_updates=20", "epochs=1"], "linear classifiers: 0 of 20 updates"),
    ("logistic", ["c=[0.01]"], "logistic regression: 0 of 2 fits"),
    ("few-labels", ["draws=3", "labels_per_class=[1]"], "logistic regression on 1 labels per class: 0 of 3 draws"),
])  # fmt: skip
def test_long_fits_are_told_of(runs, monkeypatch, capsys, protocol, settings, told):
    monkeypatch.setattr(progress, "PASS_AFTER", 0.0)
    evaluate(protocol, runs.run, ["raw_pixels=false", "random_init=false", "workers=0", *settings])
    assert told in capsys.readouterr().out


def test_a_finished_run_keeps_what_it_has_where_a_protocol_cannot_be_run(tmp_path, capsys):
    (tmp_path / "large.yaml").write_text("protocol: knn\nk: [5000]\nrandom_init: false\n")
    (tmp_path / "small.yaml").write_text("protocol: knn\nk: [5]\nrandom_init: false\nraw_pixels: false\nworkers: 0\n")
    run = tmp_path / "run"
    code = main(["pretrain", "demo/simclrv2", "backbone.width=0.125", "train.epochs=null", "train.updates=1",
                 "data.train.batch=8", "optim.warmup_epochs=0", "eval.every=0", f"run={run}",
                 f"eval.at_end=[{tmp_path / 'large.yaml'}, {tmp_path / 'small.yaml'}]"])
    printed = capsys.readouterr()
    problem, kept = printed.err.splitlines()
    assert code == 2 and problem == "large: k is 5000, but there are 1297 labelled training images; use k=[129]"
    assert kept.startswith(f"The training itself is finished and kept in {run}: 'unlabeled evaluate PROTOCOL {run} ")
    assert "knn5@.07" in printed.out and "curves: " in printed.out
    assert (run / "DONE").exists() and (run / "eval" / "small-update00000001.json").exists()


def test_unknown_labels_do_not_count_among_the_test_images(runs, tmp_path, capsys):
    rng, labels = np.random.default_rng(0), np.arange(40) % 2
    labels[::4] = -1
    (tmp_path / "set").mkdir()
    np.savez(tmp_path / "set" / "train.npz", images=rng.integers(0, 256, (40, 8, 8, 3), np.uint8), labels=labels)
    (tmp_path / "card.yaml").write_text(
        f"name: own\nsource: {{kind: array}}\nroot: {tmp_path / 'set'}\nclasses: [a, b]\n"
        "splits: {train: {}, val: {path: train.npz}}\n")
    report = evaluate("knn", runs.run, [f"card={tmp_path / 'card.yaml'}", "k=[1]", *QUICK])
    assert (report.scored, report.shared, report.test.n, report.test.unlabelled) == (30, 30, 40, 10)
    (caution,) = report.cautions
    assert caution.startswith("30 of the 30 test images of 'val' stand in the training split 'train' too: each is left")
    assert "30, all in train" in capsys.readouterr().out and report["knn1@.07"].chance == pytest.approx(200 / 3)


def test_a_protocol_that_does_not_fit_is_not_run(runs, tmp_path, monkeypatch):
    """Neither with others on the same splits nor by itself: what it would train is never begun."""
    checkpoint = tmp_path / "run" / "checkpoints" / "update-00000012.pt"
    monkeypatch.setattr(module, "train_and_score", None)
    (tmp_path / "five.yaml").write_text("protocol: knn\nk: [5]\nrandom_init: false\nraw_pixels: false\n")
    with pytest.raises(UserError, match=r"^linear-sgd: protocol 'linear-sgd' starts from a finished run"):
        evaluate_many([tmp_path / "five.yaml", "linear-sgd"], checkpoint, ["workers=0"])
    assert [path.name.partition("-")[0] for path in (runs.run / "eval").iterdir()] == ["five"]
