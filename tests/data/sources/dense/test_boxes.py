"""Sets with boxes: the layouts of VOC and COCO, what is refused, and what a batch for a detector holds."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.config.card import Card
from unlabeled.data.detection_batches import TrainMaker, WholeMaker, resized_to
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.errors import UserError

OBJECT = ("<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
          "<ymax>{}</ymax></bndbox></object>")


def picture(path: Path, width: int = 60, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)).save(path)


def voc_image(root: Path, year: str, name: str, *objects: tuple) -> None:
    picture(root / year / "JPEGImages" / f"{name}.jpg")
    (root / year / "Annotations").mkdir(exist_ok=True)
    text = "".join(OBJECT.format(*each) for each in objects)
    (root / year / "Annotations" / f"{name}.xml").write_text(
        f"<annotation><size><width>60</width><height>40</height><depth>3</depth></size>{text}</annotation>")


def voc_list(root: Path, year: str, name: str, *images: str) -> None:
    (root / year / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / year / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(images) + "\n")


def card(kind: str, root: Path, **more: object) -> Card:
    return Card.model_validate({"name": "boxes", "source": {"kind": kind}, "root": str(root), **more})


@pytest.fixture
def voc(tmp_path: Path) -> Card:
    voc_image(tmp_path, "VOC2007", "a", ("dog", 0, 1, 1, 60, 40), ("cat", 1, 11, 6, 20, 15))
    voc_image(tmp_path, "VOC2012", "b", ("cat", 0, 50, 30, 70, 45), ("cat", 0, 61, 5, 90, 10))
    voc_image(tmp_path, "VOC2012", "c")
    voc_list(tmp_path, "VOC2007", "trainval", "a")
    voc_list(tmp_path, "VOC2012", "trainval", "b", "c")
    return card("voc-boxes", tmp_path, classes=["cat", "dog"],
                splits={"train": {"path": "VOC2007/trainval+VOC2012/trainval"}, "val": {"path": "VOC2007/trainval"}})


def test_voc_lists_are_joined_and_boxes_are_edges_from_zero(voc: Card) -> None:
    source = open_source(voc, "train")
    assert [source.key(i) for i in range(3)] == ["VOC2007/JPEGImages/a.jpg", "VOC2012/JPEGImages/b.jpg",
                                                 "VOC2012/JPEGImages/c.jpg"]
    assert source.object_classes == ["cat", "dog"] and not source.has_shapes
    assert voc.has("boxes") and not voc.has("masks")
    objects = source.objects(0)
    assert objects.boxes.tolist() == [[0, 0, 60, 40], [10, 5, 20, 15]]
    assert objects.kinds.tolist() == [1, 0] and objects.difficult.tolist() == [False, True]
    assert objects.areas.tolist() == [2400, 100] and not objects.crowd.any()
    assert source.image(0).shape == (40, 60, 3)
    assert len(open_source(voc, "val")) == 1


def test_boxes_are_cut_at_the_border_and_those_beyond_are_counted(voc: Card) -> None:
    source = open_source(voc, "train")
    assert source.objects(1).boxes.tolist() == [[49, 29, 60, 40]]
    assert source.dropped == 1
    assert source.objects(2).boxes.shape == (0, 4)
    assert source.with_objects().tolist() == [0, 1]


def test_a_copy_for_another_process_is_the_same(voc: Card) -> None:
    source = open_source(voc, "train")
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.objects(0).boxes, source.objects(0).boxes) and again.key(1) == source.key(1)


def test_what_is_wrong_with_voc_files_is_said(voc: Card, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*VOC2007/ImageSets/Main/test\.txt; give the folder that holds"):
        open_source(voc.model_copy(update={"splits": {"train": voc.splits["val"].model_copy(
            update={"path": "VOC2007/test"})}}), "train")
    with pytest.raises(UserError, match=r"a\.xml: object of class 'dog', which data card 'boxes' does not name"):
        open_source(voc.model_copy(update={"classes": ["cat"]}), "train")
    with pytest.raises(UserError, match="needs 'classes'"):
        open_source(voc.model_copy(update={"classes": None}), "train")
    (tmp_path / "VOC2012" / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 annotated images are missing in .*: VOC2012/JPEGImages/b\.jpg"):
        open_source(voc, "train")
    file = tmp_path / "VOC2007" / "Annotations" / "a.xml"
    file.write_text("<annotation><size><width>9</width></size>")
    with pytest.raises(UserError, match=r"annotation .*a\.xml is damaged"):
        open_source(voc, "train")
    file.write_text("<annotation><size><width>9</width></size></annotation>")
    with pytest.raises(UserError, match=r"a\.xml is damaged: no size/height"):
        open_source(voc, "train")
    file.unlink()
    with pytest.raises(UserError, match=r"annotation .*a\.xml cannot be read: No such file"):
        open_source(voc, "train")


POLYGON = [10.0, 5.0, 20.0, 5.0, 20.0, 15.0, 10.0, 15.0]


def coco_content() -> dict:
    def note(number: int, image: int, box: list, kind: int, shape: object, **more: object) -> dict:
        return {"id": number, "image_id": image, "category_id": kind, "bbox": box, "segmentation": shape,
                "area": box[2] * box[3] / 2, "iscrowd": 0, **more}

    # run lengths down the columns: the first 25 of 60 columns of 40 pixels
    runs = {"size": [40, 60], "counts": [0, 1000, 1400]}
    return {
        "images": [{"id": 7, "file_name": "x.jpg", "height": 40, "width": 60},
                   {"id": 3, "file_name": "y.jpg", "height": 40, "width": 60},
                   {"id": 9, "file_name": "z.jpg", "height": 40, "width": 60}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
        "annotations": [
            note(1, 7, [10, 5, 10, 10], 18, [POLYGON]),
            note(2, 7, [0, 0, 25, 40], 17, runs, iscrowd=1),
            note(3, 3, [55, 35, 10, 10], 17, [POLYGON, [30.0, 20.0, 40.0, 20.0, 40.0, 30.0]]),
            note(4, 3, [5, 5, 0, 10], 17, [POLYGON]),
            note(5, 3, [5, 5, 5, 10], 17, [[1.0, 2.0, 3.0, 4.0]]),
            note(6, 9, [0, 0, 25, 40], 17, runs, iscrowd=1),
        ],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Card:
    for name in "xyz":
        picture(tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_photos.json").write_text(json.dumps(coco_content()))
    return card("coco-boxes", tmp_path, splits={"train": {"path": "photos"}})


def test_annotations_do_not_live_in_memory(coco: Card) -> None:
    with pytest.raises(ValueError, match="'in_memory' does not go with source kind coco-boxes"):
        Card.model_validate({**coco.model_dump(), "in_memory": True})


def test_files_of_another_kind_are_named(coco: Card, tmp_path: Path) -> None:
    kinds = {b"\x1f\x8b\x08": "compressed", b"<html>": "a web page", b"": "empty", b"version https://git-lfs": "the po"}
    for data, text in kinds.items():
        (tmp_path / "annotations" / "instances_photos.json").write_bytes(data)
        with pytest.raises(UserError, match=rf"photos.json is damaged, or no file of instances: it is {text}"):
            open_source(coco, "train")


def test_coco_images_and_classes_follow_their_numbers(coco: Card) -> None:
    source = open_source(coco, "train")
    assert [source.key(i) for i in range(3)] == ["photos/y.jpg", "photos/x.jpg", "photos/z.jpg"]
    assert source.object_classes == ["cat", "dog"] and source.has_shapes
    assert coco.has("boxes") and not coco.has("masks")
    assert source.dropped == 2  # no area, and a polygon of two points
    assert source.with_objects().tolist() == [0, 1]  # only a crowd in the third
    objects = source.objects(1, masks=True)
    assert objects.boxes.tolist() == [[10, 5, 20, 15], [0, 0, 25, 40]]
    assert objects.kinds.tolist() == [1, 0] and objects.crowd.tolist() == [False, True]
    assert objects.areas.tolist() == [50, 500]
    assert objects.masks.shape == (2, 40, 60) and source.objects(1).masks is None


def test_coco_polygons_and_run_lengths_become_masks(coco: Card) -> None:
    source = open_source(coco, "train")
    square, crowd = source.objects(1, masks=True).masks
    assert square[6:14, 11:19].all() and square.sum() <= 121 and not square[:4].any() and not square[:, 22:].any()
    assert crowd[:, :25].all() and not crowd[:, 25:].any()
    (both,) = source.objects(0, masks=True).masks
    assert both[10, 15] and both[22, 38] and not both[22, 25]
    assert source.objects(0).boxes.tolist() == [[55, 35, 60, 40]]


def test_what_is_wrong_with_coco_files_is_said(coco: Card, tmp_path: Path) -> None:
    file = tmp_path / "annotations" / "instances_photos.json"
    with pytest.raises(UserError, match="category 'cat', which data card 'boxes' does not name"):
        open_source(coco.model_copy(update={"classes": ["dog"]}), "train")
    content = coco_content()
    del content["annotations"][0]["bbox"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged, or no file of instances: no 'bbox'"):
        open_source(coco, "train")
    file.write_text('{"images": [')
    with pytest.raises(UserError, match="is damaged, or no file of instances"):
        open_source(coco, "train")
    file.write_text(json.dumps(coco_content()))
    (tmp_path / "photos" / "z.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 3 annotated images are missing in .*photos/z\.jpg"):
        open_source(coco, "train")
    file.unlink()
    with pytest.raises(UserError, match=r"no file .*instances_photos\.json; give the folder that holds annotations"):
        open_source(coco, "train")


def write_coco(root: Path, content: object) -> None:
    (root / "annotations" / "instances_photos.json").write_text(json.dumps(content))


def changed(part: str, place: int, **values: object) -> dict:
    """Return the content with one entry changed; ... removes a key."""
    content = coco_content()
    content[part][place] = {k: v for k, v in {**content[part][place], **values}.items() if v is not ...}
    return content


@pytest.mark.parametrize(("stated", "actual"), [((60, 40), (40, 60)), ((40, 60), (60, 40)), ((80, 120), (40, 60))])
@pytest.mark.parametrize("kind", ["coco", "voc"])
def test_annotations_of_another_size_are_refused_where_boxes_meet_the_image(
        tmp_path: Path, kind: str, stated: tuple[int, int], actual: tuple[int, int], request: pytest.FixtureRequest,
        ) -> None:
    about = request.getfixturevalue(kind)
    name = {"coco": "photos/x.jpg", "voc": "VOC2007/JPEGImages/a.jpg"}[kind]
    picture(tmp_path / name, actual[1], actual[0])
    if kind == "coco":
        write_coco(tmp_path, changed("images", 0, height=stated[0], width=stated[1]))
    else:
        file = tmp_path / "VOC2007/Annotations/a.xml"
        file.write_text(file.read_text().replace("<width>60</width><height>40</height>",
                                                 f"<width>{stated[1]}</width><height>{stated[0]}</height>"))
    source = open_source(about, "train")
    place = [source.key(i) for i in range(len(source))].index(name)
    message = (f"data 'boxes', split 'train': the annotation of '{name}' is {stated[0]} x {stated[1]}, but the image "
               f"{actual[0]} x {actual[1]}")
    with pytest.raises(UserError, match=message) as error:
        WholeMaker(Part(source, np.arange(len(source)))).make(np.array([place]))
    assert ("orientation: apply and ignore" in str(error.value)) == (stated == actual[::-1])
    with pytest.raises(UserError, match=message):
        TrainMaker(source, (40,), 200, seed=0, masks=False).make((0, np.arange(2)))


def test_a_turned_photo_is_read_by_the_orientation_of_the_card(coco: Card, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(tmp_path / "photos" / "x.jpg", exif=exif)
    for orientation, height, width in ((None, 40, 60), ("ignore", 40, 60), ("apply", 60, 40)):
        write_coco(tmp_path, changed("images", 0, height=height, width=width))
        about = coco.model_copy(update={"orientation": orientation})
        assert WholeMaker(open_source(about, "train")).make(np.array([1])).images[0].shape == (3, height, width)
        write_coco(tmp_path, changed("images", 0, height=width, width=height))
        with pytest.raises(UserError, match=f"is {width} x {height}, but the image {height} x {width}; the other of"):
            WholeMaker(open_source(about, "train")).make(np.array([1]))


@pytest.mark.parametrize("value", [0, -3, 40.5, "40", None, True, float("nan"), float("inf")])
def test_sizes_that_are_none_are_refused_at_the_start(coco: Card, voc: Card, tmp_path: Path, value: object) -> None:
    write_coco(tmp_path, changed("images", 1, height=value))
    with pytest.raises(UserError, match=r"instances_photos\.json .*its height is .* \(image 3\)"):
        open_source(coco, "train")
    file = tmp_path / "VOC2012/Annotations/b.xml"
    file.write_text(file.read_text().replace("<width>60", f"<width>{value}"))
    if value != "40":
        with pytest.raises(UserError, match=r"VOC2012/Annotations/b\.xml is damaged"):
            open_source(voc, "train")


@pytest.mark.parametrize("boxes_only", [[], ..., None, {}, {"size": [40, 60], "counts": None}, [[]], "", {"counts": []},
                                        [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 7, {"size": [60, 40], "counts": [0, 2400]},
                                        {"size": [40, 60], "counts": [5]}, {"size": [40, 60], "counts": [2401, -1]},
                                        [[1.0, 1.0, 1e9, 1.0, 1e9, 1e9]], [[1.0, 1.0, float("nan"), 2.0, 3.0, 3.0]],
                                        [["1", 1.0, 2.0, 2.0, 3.0, 3.0]]], ids=repr)
def test_boxes_without_usable_masks_are_kept_and_the_file_says_which(coco: Card, tmp_path: Path, boxes_only: object,
                                                                      ) -> None:
    write_coco(tmp_path, changed("annotations", 0, segmentation=boxes_only))
    source = open_source(coco, "train")
    assert source.objects(1).boxes.tolist() == [[10, 5, 20, 15], [0, 0, 25, 40]] and source.dropped == 2
    assert not source.has_shapes and "instances_photos.json, annotation 1: " in source.lacks_shape
    batch = TrainMaker(source, (40,), 200, seed=0, masks=False).make((0, np.arange(2)))
    assert sorted(len(target["boxes"]) for target in batch.targets) == [1, 1]


def test_what_reaches_over_the_border_is_cut_with_its_area_and_keeps_its_mask(coco: Card, tmp_path: Path) -> None:
    over = [[-20.5, 5.0, 30.0, 5.0, 30.0, 15.0]]
    write_coco(tmp_path, changed("annotations", 0, bbox=[-20.5, 5, 50.5, 10], area=..., segmentation=over))
    source = open_source(coco, "train")
    objects = source.objects(1, masks=True)
    assert objects.boxes[0].tolist() == [0, 5, 30, 15] and objects.areas[0] == 300
    assert source.has_shapes and objects.masks[0].any()


@pytest.mark.parametrize(("part", "place", "values", "message"), [
    ("images", 1, {"id": 7}, r"images photos/x.jpg and photos/y.jpg have the same id 7"),
    ("images", 1, {"id": 7.0}, "have the same id 7"),
    ("images", 1, {"file_name": "x.jpg"}, r"two images are photos/x.jpg"),
    ("images", 1, {"file_name": "./x.jpg"}, r"two images are photos/x.jpg"),
    ("images", 1, {"file_name": None}, r"its file_name is None \(image 3\)"),
    ("images", 1, {"file_name": "a\ud800.jpg"}, r"surrogates not allowed \(image 3\)"),
    ("images", 1, {"id": None}, "the id None"), ("images", 1, {"id": [1]}, "the id"),
    ("images", 1, {"id": "3"}, "ids are numbers in some places and text in others"),
    ("categories", 1, {"id": 18}, "category 18, 'cat', comes twice"),
    ("categories", 1, {"name": "dog"}, "category 17, 'dog', comes twice"),
    ("categories", 1, {"name": 5}, r"its name is 5 \(category 17\)"),
    ("annotations", 0, {"image_id": 8}, r"it belongs to image 8, which the file does not hold \(annotation 1\)"),
    ("annotations", 0, {"image_id": "7"}, "it belongs to image '7', which the file does not hold"),
    ("annotations", 0, {"category_id": 1}, "it belongs to category 1, which the file does not hold"),
    ("annotations", 0, {"bbox": [1, 2, float("nan"), 4]}, "a box from 1, 2 to nan"),
    ("annotations", 0, {"bbox": [1, 2, float("inf"), 4]}, "a box from 1, 2 to inf"),
    ("annotations", 0, {"bbox": [10, 5, -4, 4]}, "a box from 10, 5 to 6, 9"),
    ("annotations", 0, {"bbox": [10, 5, 4]}, r"the bbox \[10, 5, 4\], which should be"),
    ("annotations", 0, {"bbox": None}, "the bbox None"), ("annotations", 0, {"bbox": "1234"}, "the bbox '1234'"),
    ("annotations", 0, {"bbox": ["1", "2", "3", "4"]}, r"\(annotation 1\)"),
    ("annotations", 0, {"iscrowd": "0"}, "iscrowd '0'"), ("annotations", 0, {"iscrowd": 2}, "iscrowd 2"),
    ("annotations", 0, {"area": float("nan")}, "the area nan"), ("annotations", 0, {"area": "9"}, r"\(annotation 1\)"),
    ("annotations", 0, {"area": -1}, "the area -1"), ("annotations", 0, {"area": 1e300}, r"the area 1e\+300"),
])
def test_annotations_that_do_not_fit_are_refused_with_file_and_entry(
        coco: Card, tmp_path: Path, part: str, place: int, values: dict, message: str) -> None:
    write_coco(tmp_path, changed(part, place, **values))
    with pytest.raises(UserError, match=message) as error:
        open_source(coco, "train")
    assert "instances_photos.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [[], 7, None, {}, {"images": 3, "categories": [], "annotations": []},
                                     {"images": [4], "categories": [], "annotations": []},
                                     {"images": [], "categories": [], "annotations": [None]}])
def test_files_of_another_form_are_refused(coco: Card, tmp_path: Path, content: object) -> None:
    write_coco(tmp_path, content)
    with pytest.raises(UserError, match=r"instances_photos\.json is damaged, or no file of instances: "):
        open_source(coco, "train")
    (tmp_path / "annotations" / "instances_photos.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="no file of instances"):
        open_source(coco, "train")


def test_ids_may_be_text_and_areas_missing(coco: Card, tmp_path: Path) -> None:
    content = coco_content()
    for image in content["images"]:
        image["id"] = f"n{image['id']}"
    for note in content["annotations"]:
        note |= {"image_id": f"n{note['image_id']}", "area": None, "iscrowd": None}
    write_coco(tmp_path, content)
    source = open_source(coco, "train")
    assert source.key(0) == "photos/y.jpg" and source.objects(1).areas.tolist() == [100, 1000]


@pytest.mark.parametrize(("old", "new", "message"), [
    ("<xmin>11<", "<xmin>nan<", "a box from nan"), ("<xmin>11<", "<xmin>25<", "a box from 24, 5 to 20, 15"),
    ("<xmax>20<", "<xmax>inf<", "a box from 10, 5 to inf, 15"),
    ("<difficult>1<", "<difficult>yes<", "difficult is 'yes'; allowed: 0, 1")])
def test_files_of_voc_that_do_not_fit_are_refused(voc: Card, tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "VOC2007/Annotations/a.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=rf"Annotations/a\.xml is damaged: {message}"):
        open_source(voc, "train")


def test_lists_of_voc_that_name_an_image_twice_or_are_no_text_are_refused(voc: Card, tmp_path: Path) -> None:
    voc_list(tmp_path, "VOC2012", "trainval", "b", "c", "b")
    with pytest.raises(UserError, match=r"the list .*VOC2012/ImageSets/Main/trainval\.txt names 'b' twice"):
        open_source(voc, "train")
    voc_list(tmp_path, "VOC2012", "trainval", "b")
    twice = voc.model_copy(update={"splits": {"train": voc.splits["val"].model_copy(
        update={"path": "VOC2007/trainval+VOC2007/trainval"})}})
    with pytest.raises(UserError, match=r"its lists name VOC2007/JPEGImages/a\.jpg twice; .*Main/trainval\.txt"):
        open_source(twice, "train")
    for data, message in ((b"\xff\xfe\x00", "cannot be read as text"), (b"\n", "is empty")):
        (tmp_path / "VOC2012/ImageSets/Main/trainval.txt").write_bytes(data)
        with pytest.raises(UserError, match=message):
            open_source(voc, "train")
    (tmp_path / "VOC2012/ImageSets/Main/trainval.txt").write_bytes("\ufeffb\r\n".encode())
    assert len(open_source(voc, "train")) == 2


def shapes(n: int = 20, size: int = 48) -> Source:
    return open_source(Card.model_validate({"name": "s", "source": {"kind": "shapes", "size": size, "objects": [2, 5]},
                                            "splits": {"train": {"samples": n}}, "in_memory": True}), "train")


def test_rendered_shapes_have_boxes_around_their_masks() -> None:
    source = shapes()
    for i in range(len(source)):
        objects = source.objects(i, masks=True)
        assert len(objects.kinds) == len(objects.boxes) == len(objects.masks) > 0
        for mask, (left, top, right, bottom), area in zip(objects.masks, objects.boxes.astype(int), objects.areas,
                                                          strict=True):
            assert mask.sum() == area == mask[top:bottom, left:right].sum()
            assert mask[top].any() and mask[bottom - 1].any() and mask[:, left].any() and mask[:, right - 1].any()
        seen = source.mask(i)
        assert np.array_equal(np.unique(seen[seen > 0]), np.unique(objects.kinds + 1))


def test_training_views_depend_on_their_position_alone_and_boxes_follow_the_image() -> None:
    source = shapes()
    maker = TrainMaker(source, (40, 48, 60), 200, seed=5, masks=True)
    together = maker.make((2, np.arange(20)))
    flipped = set()
    for position in range(20):
        alone = maker.make((2, np.array([position])))
        assert torch.equal(alone.images[0], together.images[position])
        image, target = alone.images[0], alone.targets[0]
        truth = source.objects(alone.index[0], masks=True)
        side = image.shape[1]
        assert side in (40, 48, 60) and image.dtype == torch.uint8
        assert torch.equal(target["labels"], torch.from_numpy(truth.kinds + 1))
        scaled = torch.from_numpy(truth.boxes) * side / 48
        mirrored = torch.stack([side - scaled[:, 2], scaled[:, 1], side - scaled[:, 0], scaled[:, 3]], 1)
        flip = not torch.allclose(target["boxes"], scaled, atol=1e-4)
        flipped.add(flip)
        assert torch.allclose(target["boxes"], mirrored if flip else scaled, atol=1e-4)
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
            found = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            assert (found - box).abs().max() <= 1.5
    assert flipped == {True, False}
    assert {image.shape[1] for image in together.images} == {40, 48, 60}
    again = maker.make((3, np.arange(20)))
    assert again.index != together.index  # another epoch


def test_every_image_with_objects_comes_once_in_an_epoch() -> None:
    maker = TrainMaker(shapes(), (48,), 200, seed=0, masks=False)
    assert sorted(maker.make((0, np.arange(20))).index) == list(range(20))
    assert "masks" not in maker.make((0, np.arange(1))).targets[0]


def test_unreadable_images_are_named_and_replaced_alike() -> None:
    source = shapes()
    whole = source.image

    def image(index: int) -> np.ndarray:
        if index == 3:
            raise CorruptSample("three", "broken for the test")
        return whole(index)

    source.image = image
    maker = TrainMaker(source, (48,), 200, seed=0, masks=False)
    made = maker.make((0, np.arange(20)))
    assert made.corrupt == ["three"] and len(made.images) == 20 and 3 not in made.index
    assert maker.make((0, np.arange(20))).index == made.index
    tested = WholeMaker(source).make(np.arange(5))
    assert tested.index == [0, 1, 2, 4] and tested.corrupt == ["three"]


@pytest.mark.parametrize(("given", "side", "expected"), [
    ((480, 640), 800, (800, 1067)), ((375, 500), 480, (480, 640)), ((300, 1200), 800, (333, 1333)),
    ((640, 480), 800, (1067, 800)),
])
def test_the_shorter_side_gives_way_to_the_longer(given: tuple, side: int, expected: tuple) -> None:
    assert resized_to(*given, side, 1333) == expected
