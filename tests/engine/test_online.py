"""What is measured while training: it never ends a run, comes after the checkpoint, and says what it leaves out."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.fakes import FakeMethod, Noise
from tests.tiny import tiny_recipe

from unlabeled.engine import online as module
from unlabeled.engine.online import ACCURACY_NAME, KNN_NAME, Online, last_measured
from unlabeled.engine.plan import make_plan
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.ops.measures.health import health


def online(source, *extra):
    recipe = tiny_recipe("simclrv2", "plain", ["eval.every=1", "data.workers=0", *extra])
    plan = make_plan(recipe, "train", 1297, 1)
    return Online(recipe, plan, source, torch.device("cpu"))


def labelled(n, known, classes=2, **more):
    source = Noise(n, classes=classes, **more)
    source.labels = np.where(np.isin(np.arange(n), known), source.labels, -1)
    return source


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("known", [0, 1, 1000])
@pytest.mark.parametrize("classes", [1, 2])
def test_any_number_of_images_and_labels_gives_numbers_or_one_line(n, known, classes, capsys):
    watch = online(labelled(n, np.arange(min(known, n)), classes))
    said = capsys.readouterr().out
    found = watch.measure(FakeMethod(8))
    lines = watch.report(12, found)
    assert all(np.isfinite(value) for value in found.values())
    assert ("health/feature_std" in found) == (n > 1) and not any("nothing" in line for line in lines)
    assert len(said.splitlines()) <= 1
    if KNN_NAME not in found:
        assert "no kNN" in said or "no health or kNN" in said
    elif known < n:
        assert "images without a label are left out of kNN" in said


def test_images_without_a_label_do_not_count(capsys):
    everything = Noise(80)
    watch = online(everything)
    same = online(labelled(80, [int(i) for i in np.r_[watch.bank.indices[:30], watch.queries.indices[:10]]]))
    bank, queries = (module.extract({"x": module.network_embedder(FakeMethod(8).exports()["backbone"], "cpu")}, part,
                                    batch=9, workers=0, device=torch.device("cpu"), max_corrupt=1)["x"]
                     for part in (watch.bank, watch.queries))
    expected = module.knn.predict(bank.x[:30], bank.label[:30], queries.x[:10], [20], 0.07, 2)[20]
    found = same.measure(FakeMethod(8))
    assert found[KNN_NAME] == pytest.approx(100 * float((expected == queries.label[:10]).float().mean()))
    assert "30 of 60 of the bank and 10 of 20 queries, in split 'all' of 'noise'" in capsys.readouterr().out


class FakeClassifier(FakeMethod):
    """Its logits are the features, of which there are more than classes."""

    def exports(self):
        export = super().exports()["backbone"]
        return {"classifier": type(export)(export.build, "logits", export.input)}


def test_images_without_a_label_do_not_count_for_accuracy_and_none_at_all_is_said_once():
    watch = online(Noise(80))
    same = online(labelled(80, [int(i) for i in watch.queries.indices[:10]]))
    queries = module.extract({"x": module.network_embedder(FakeMethod(8).exports()["backbone"], "cpu")}, same.queries,
                             batch=9, workers=0, device=torch.device("cpu"), max_corrupt=1)["x"].labelled()
    assert len(queries.x) == 10
    guess = queries.x.argmax(1)
    same.queries.source.labels[same.queries.indices[:10]] = guess.numpy()  # all of them right
    same = online(same.queries.source)
    assert same.measure(FakeClassifier(8)) == {ACCURACY_NAME: 100.0}
    none = online(labelled(80, []))
    said = [none.report(done, none.measure(FakeClassifier(8))) for done in (54, 108)]
    assert said == [["after 54 updates no accuracy is measured: split 'all' of 'noise' has no labels"], []]


def test_labels_without_names_of_classes_are_measured_too():
    source = Noise(40, classes=3)
    named = online(source).measure(FakeMethod(8))
    source.classes = None
    assert online(source).measure(FakeMethod(8)) == named and KNN_NAME in named


@pytest.mark.parametrize("error, said", [
    (UserError("the features of 3 images are NaN"), "the features of 3 images are NaN"),
    (RuntimeError("out\n of memory"), "RuntimeError: out of memory"),
    (ZeroDivisionError(), "ZeroDivisionError: no reason given"),
])
def test_what_goes_wrong_is_one_line(monkeypatch, error, said):
    watch = online(Noise(20))
    monkeypatch.setattr(module, "extract", lambda *a, **k: (_ for _ in ()).throw(error))
    assert watch.measure(FakeMethod(8)) == {}
    assert watch.report(7, {}) == [f"after 7 updates nothing could be measured, training goes on: {said}"]
    assert watch.report(8, {}) == []


def test_a_network_that_gives_nan_and_images_that_cannot_be_read_are_one_line():
    class Diverged(FakeMethod):
        def exports(self):
            return {name: module_with_nan(export) for name, export in super().exports().items()}

    def module_with_nan(export):
        class Nan(torch.nn.Module):
            def forward(self, x):
                return x.flatten(1) * torch.nan

        return type(export)(Nan, "vector", export.input)

    watch = online(Noise(20))
    lines = watch.report(1, watch.measure(Diverged(8)))
    assert len(lines) == 1 and "NaN or infinite" in lines[0]
    watch = online(Noise(20, broken=tuple(range(20))))
    lines = watch.report(1, watch.measure(FakeMethod(8)))
    assert len(lines) == 1 and "15 of 15 images cannot be read, so none is left" in lines[0]
    few = Noise(20)
    few.broken = tuple(int(i) for i in online(few).queries.indices)
    watch = online(few)
    found = watch.measure(FakeMethod(8))
    assert KNN_NAME not in found


def test_eval_every_below_one_update_is_said(capsys):
    watch = online(Noise(20), "eval.every=0.001")
    assert watch.every == 1
    assert "eval.every 0.001 is less than one update, of which an epoch has 54" in capsys.readouterr().out
    assert online(Noise(20), "eval.every=0").every == 0 and capsys.readouterr().out == ""


def test_a_moment_is_measured_once():
    watch = online(Noise(20))
    assert not watch.due(0) and not watch.due(53) and watch.due(54)
    watch.report(54, {})
    assert not watch.due(54) and watch.due(108)
    lines = [{"update": 3, "loss": 1.0}, {"update": 5, "health/feature_std": 0.1}, {"update": 6, "loss": 1.0}]
    assert last_measured(lines) == 6 and last_measured(lines[:1]) == 0


def folder_recipe(tmp_path, count, *extra):
    (tmp_path / "photos").mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tiny_recipe("simclrv2", "plain", [
        "data.train.card=folder", f"data.train.root={tmp_path / 'photos'}", "data.train.batch=2", "train.updates=2",
        "train.epochs=null", f"data.train.epoch_samples={max(2, count)}", "eval.every=1", "train.log_every=1", *extra])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_on_hardly_any_images_is_finished_and_exported(tmp_path, count, capsys):
    run = tmp_path / "run"
    assert train(folder_recipe(tmp_path, count), run).finished
    assert (run / "export" / "backbone.safetensors").exists() and (run / "DONE").exists()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 1]
    assert ("health/feature_std" in lines[-1]) == (count > 1)
    if count == 1:
        assert "no health or kNN while training: the bank holds 1 image of split 'train'" in capsys.readouterr().out


def test_checkpoint_and_export_stand_before_anything_is_measured(tmp_path, monkeypatch):
    """A measurement that takes the whole process along loses nothing, and is done when the run goes on."""
    run, recipe = tmp_path / "run", folder_recipe(tmp_path, 8, "train.checkpoint_every=1", "train.updates=6")
    seen = []

    class Killed(BaseException):
        pass

    def kill(self, method):
        seen.append((len(list((run / "checkpoints").glob("*.pt"))), (run / "export").exists()))
        raise Killed

    for _ in range(2):  # after the first epoch, and again at once
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Online, "measure", kill)
            train(recipe, run)
    assert seen == [(2, False), (2, False)]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(4)) and last_measured(lines) == 0
    assert train(recipe, run).finished
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == list(range(6))
    assert [line["update"] for line in lines if "health/feature_std" in line] == [3, 5] and "loss" in lines[3]


def test_health_of_few_or_odd_features_is_a_number():
    for x in (torch.zeros(2, 3), torch.ones(2, 3), torch.eye(2), torch.randn(3, 1), torch.full((4, 2), 1e-30)):
        assert len(health(x)) == 3 and all(np.isfinite(value) for value in health(x).values())
    assert health(torch.ones(1, 3)) == health(torch.ones(0, 3)) == {}


def test_queries_are_not_in_their_bank():
    watch = online(Noise(200), "eval.bank=90", "eval.queries=40")
    bank, queries = set(watch.bank.indices.tolist()), set(watch.queries.indices.tolist())
    assert (len(bank), len(queries)) == (90, 40) and not bank & queries
    assert not set(online(Noise(21)).bank.indices) & set(online(Noise(21)).queries.indices)


def test_a_query_does_not_find_itself_in_noise():
    """Twenty neighbours of noise in two classes guess; a query in its own bank would nearly decide its vote alone."""
    source = Noise(1200)
    source.labels = np.random.default_rng(1).integers(0, 2, 1200)
    assert 40 < online(source).measure(FakeMethod(8))[KNN_NAME] < 60
