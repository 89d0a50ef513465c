import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.passes.mining.photos import changed, parts

from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.photometric import to_input
from unlabeled.config.card import Card
from unlabeled.config.passes.mining import MineSettings
from unlabeled.config.read import read_card
from unlabeled.data.crops import cut
from unlabeled.data.sources.mixed import Mixed
from unlabeled.data.sources.open import open_source
from unlabeled.errors import UserError
from unlabeled.passes.mining import duplicates, local_features
from unlabeled.passes.mining.mine import mine

CLASSES, PER_CLASS = 3, 4
COPIES = {"equal.png": ("left", None), "dark.png": ("right", "darker"), "cut.png": ("upper", "cut at the border")}


def shapes(count, seed):
    card = {"name": "shapes", "source": {"kind": "shapes", "size": 40, "seed": seed},
            "splits": {"all": {"samples": count}}}
    source = open_source(Card.model_validate(card), "all")
    return [source.image(i) for i in range(count)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of images with copies of test images, images of a training set and a broken file; and a teacher."""
    home = tmp_path_factory.mktemp("mining")
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=CLASSES)
    for folder in ("pool/a", "pool/b", "test", "train/x", "train/y", "train/z"):
        (home / folder).mkdir(parents=True)
    others = shapes(72, 0)
    for number, image in enumerate(others):
        Image.fromarray(image).save(home / "pool" / "ab"[number % 2] / f"{number:03d}.png")
    for name, (part, change) in COPIES.items():
        Image.fromarray(parts()[part] if change is None else changed(part, change)).save(home / "pool" / name)
        Image.fromarray(parts()[part]).save(home / "test" / f"{part}.png")
    for number, folder in ((10, "x"), (20, "y"), (31, "z")):
        Image.fromarray(others[number]).save(home / "train" / folder / f"{number:03d}.jpg", quality=85)
    (home / "pool" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    classifier = network.get_classifier()
    torch.nn.init.normal_(classifier.weight)
    with torch.inference_mode():  # else it calls all images by one name
        logits = network.eval()(inputs(network, others))
    classifier.bias.data = classifier.bias.data - logits.mean(0)
    save_file(network.state_dict(), home / "teacher.safetensors")
    return home


def inputs(network, images):
    """What timm's own network wants of images."""
    own = network.pretrained_cfg
    crops = cut(EvalCrop(own["input_size"][-1]), list(images), np.zeros((len(images), 0)))[0]
    return to_input(crops, own["mean"], own["std"])


@pytest.fixture(scope="module", autouse=True)
def small_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_features, "LONGEST", 224)
        yield


def settings(world, out, **changed):
    known = {"pool": str(world / "pool"), "against": str(world / "test"), "known": f"{world / 'train.yaml'}:train",
             "out": str(out), "per_class": PER_CLASS, "workers": 0, "precision": "fp32", "candidates": 1, "batch": 16}
    (world / "train.yaml").write_text(f"name: own\nsource: {{kind: classfolder}}\nroot: {world / 'train'}\n"
                                      "splits: {train: {path: '.'}}\n")
    return MineSettings(**{**known, **changed})


def teacher(world):
    return f"timm:test_resnet@{world / 'teacher.safetensors'}"


@pytest.fixture(scope="module")
def mined(world, small_images):
    out = world / "mined"
    assert mine(teacher(world), settings(world, out)) == out / "list.txt"
    return out


def table(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def probabilities(world, keys):
    """What timm's own network says of the files."""
    network = timm.create_model("test_resnet", num_classes=CLASSES,
                                checkpoint_path=str(world / "teacher.safetensors")).eval()
    images = [np.array(Image.open(world / "pool" / key).convert("RGB")) for key in keys]
    with torch.inference_mode():
        return network(inputs(network, images)).double().softmax(1).numpy()


def test_the_surest_images_of_every_class_are_chosen(world, mined):
    left_out = {*COPIES, "broken.jpg", "a/010.png", "a/020.png", "b/031.png"}
    paths = sorted(path.relative_to(world / "pool").as_posix() for path in (world / "pool").rglob("*.*g"))
    keys = [path for path in paths if path not in left_out]
    assert len(keys) == 69
    prob = probabilities(world, keys)
    expected = []
    for number in range(CLASSES):
        ours = [(-prob[i, number], i) for i in range(len(keys)) if prob[i].argmax() == number]
        expected += [(keys[i], number, rank + 1) for rank, (_, i) in enumerate(sorted(ours)[:PER_CLASS])]
    rows = table(mined / "selection.csv")
    assert [(row["key"], int(row["class"]), int(row["rank"])) for row in rows] == expected
    scores = {key: prob[keys.index(key)].max() for key, _, _ in expected}
    assert all(abs(float(row["score"]) - scores[row["key"]]) < 1e-4 for row in rows)
    assert (mined / "list.txt").read_text().splitlines() == sorted(key for key, _, _ in expected)
    assert {number for _, number, _ in expected} == set(range(CLASSES))  # else the test shows little


def test_what_was_left_out_is_counted_by_its_reason(mined):
    report = json.loads((mined / "report.json").read_text())
    counts = report["counts"]
    assert counts["pool"] == 76 and counts["unreadable"] == 1 and counts["in training set"] == 3
    assert [counts[f"in evaluation set by {reason}"] for reason in ("equal", "hash", "local features")] == [1, 1, 1]
    assert report["unreadable"][0].startswith("broken.jpg: ")
    assert sum(report["classes"].values()) == counts["chosen"] == len((mined / "list.txt").read_text().splitlines())
    removed = {row["pool"]: (row["evaluation"], row["one_picture_by"]) for row in table(mined / "pairs.csv")
               if row["one_picture_by"]}
    assert removed == {"equal.png": ("left.png", "equal"), "dark.png": ("right.png", "hash"),
                       "cut.png": ("upper.png", "local features")}


def test_the_page_shows_the_pairs(mined):
    page = (mined / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2 * len(table(mined / "pairs.csv"))
    assert "one picture by local features" in page and "cut.png" in page and "<script" not in page


def test_parts_and_interruptions_give_the_same_bytes(world, mined, capsys):
    out = world / "in-parts"
    for part in ("2/2", "1/2"):  # the second finds all of the pool, but not its own part of the pairs
        assert mine(teacher(world), settings(world, out, part=part)) is None
        said = capsys.readouterr().out
        assert "blocks are missing yet" in said
        assert f"this was the {'first' if part == '2/2' else 'second'} " in said
    assert mine(teacher(world), settings(world, out, part="2/2")) == out / "list.txt"
    (out / "pool" / "rows-000001").unlink()
    for name in ("list.txt", "selection.csv", "pairs.csv"):
        assert (out / name).read_bytes() == (mined / name).read_bytes()
        (out / name).unlink()
    mine(teacher(world), settings(world, out))
    for name in ("list.txt", "selection.csv", "pairs.csv"):
        assert (out / name).read_bytes() == (mined / name).read_bytes()


def test_the_card_reads_what_was_mined_without_labels(world, mined):
    source = open_source(read_card(mined / "mined.yaml"), "train")
    keys = (mined / "list.txt").read_text().splitlines()
    assert [source.key(i) for i in range(len(source))] == keys
    assert (source.image(0) == np.array(Image.open(world / "pool" / keys[0]).convert("RGB"))).all()
    labelled = open_source(read_card(world / "train.yaml"), "train")
    both = Mixed([labelled, source], [True, True])
    assert both.labels.tolist() == [0, 1, 2] + [-1] * len(keys)


def test_one_image_may_serve_several_classes(world, mined):
    out = world / "several"
    mine(teacher(world), settings(world, out, multi_class_top_p=2, against=None))
    rows = table(out / "selection.csv")
    assert len(rows) == CLASSES * PER_CLASS
    assert len({row["key"] for row in rows}) == len((out / "list.txt").read_text().splitlines()) < len(rows)


def test_names_of_other_pictures_are_no_sign_of_the_training_set(world, tmp_path):
    (tmp_path / "train" / "x").mkdir(parents=True)
    for number, image in enumerate(shapes(12, 99)):
        Image.fromarray(image).save(tmp_path / "train" / "x" / f"{number:03d}.png")
    with pytest.raises(UserError, match=r"12 images of the pool have file names of the training set.*leave known"):
        mine(teacher(world), settings(world, tmp_path / "out", known=str(tmp_path / "train"), against=None))


BAD = {
    "the pool itself": ({"against": "POOL"}, "is the pool itself: every image of it would be a duplicate"),
    "no images": ({"pool": "EMPTY"}, "holds no images"),
    "a card that is none": ({"pool": "cifar11"}, "pool=cifar11: no data card 'cifar11'.*cifar10.*Or name a folder"),
    "a split that is none": ({"against": "digits:tset"}, "no split 'tset'"),
    "more classes than there are": ({"multi_class_top_p": 4}, "multi_class_top_p=4, but .* has 3 classes"),
    "a training set of other classes": ({"known": "digits:train"}, "knows 3 classes, but data card 'digits' has 10"),
    "a root of nothing": ({"known": None, "known_root": "x"}, "known_root has no effect without known"),
    "a root of a folder": ({"pool_root": "x"}, "pool_root has no effect"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_a_line(world, tmp_path, name):
    (tmp_path / "empty").mkdir()
    words = {"POOL": str(world / "pool"), "EMPTY": str(tmp_path / "empty")}
    changes = {key: words.get(value, value) for key, value in BAD[name][0].items()}
    with pytest.raises(UserError, match=BAD[name][1]) as error:
        mine(teacher(world), settings(world, tmp_path / "out", **changes))
    assert str(error.value).count("\n") <= 1


def test_a_network_without_classes_is_no_teacher(world, tmp_path):
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "headless.safetensors")
    with pytest.raises(UserError, match=r"gives vector and no logits.*name a classifier"):
        mine(f"timm:test_resnet@{tmp_path / 'headless.safetensors'}", settings(world, tmp_path / "out"))


def test_a_pool_of_test_images_alone_is_said_to_be_that(world, tmp_path):
    (tmp_path / "pool").mkdir()
    for path in (world / "test").iterdir():
        (tmp_path / "pool" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"nothing of the pool's 3 images is left: 3 are in the evaluation set.*same"):
        mine(teacher(world), settings(world, tmp_path / "out", pool=str(tmp_path / "pool"), known=None))
    assert not Path(tmp_path / "out" / "list.txt").exists()


def test_a_teacher_may_have_other_words_for_the_classes_of_the_training_set(world, tmp_path):
    file = tmp_path / "named.safetensors"
    state = load_file(world / "teacher.safetensors")
    for names, allowed in ((["disc", "square", "star"], True), (["x", "z", "y"], False)):
        config = {"architecture": "test_resnet", "num_classes": CLASSES, "label_names": names}
        save_file(state, file, metadata={"config": json.dumps(config)})
        chosen = settings(world, tmp_path / names[0], against=None)
        if allowed:
            mine(f"timm:test_resnet@{file}", chosen)
            assert {row["name"] for row in table(tmp_path / names[0] / "selection.csv")} <= {"x", "y", "z"}
        else:
            with pytest.raises(UserError, match="calls class 1 'z', but data card 'own' 'y'; name the set that"):
                mine(f"timm:test_resnet@{file}", chosen)


def test_rounding_makes_no_other_folder_of_pairs(world, mined, tmp_path, monkeypatch):
    """Cosines that another machine sums in another order."""
    real = duplicates.compared

    def rounded(*arguments):
        found = real(*arguments)
        found["cosine"] += 1e-6
        return found

    shutil.copytree(mined, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").glob("pairs-*"))
    monkeypatch.setattr(duplicates, "compared", rounded)
    assert mine(teacher(world), settings(world, tmp_path / "out")) is not None
    assert sorted(path.name for path in (tmp_path / "out").glob("pairs-*")) == before and len(before) == 1
