"""Sets whose findings are drawn on the films: CheXlocalize, ChestX-Det, ChestX-Det10, MS-CXR; and VinDr-PCXR.

The trees have the official layouts; names, numbers and texts in them are made up.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from encoder.masks import MaskError, coco_runs, decode_coco
from generator.corpora import chestx_det, chexlocalize, ms_cxr, vindr_pcxr
from generator.corpora.common import NO_VAL, CorpusError
from tests.test_benchmarks import box, chexpert_row, mask_of, named, write_dicom, write_picture
from tests.test_corpora import by_id, dropped, write_csv

# --- COCO's run lengths ------------------------------------------------------------------------------------------

# As pycocotools 2.0.11 writes them.
BOX_4_X_6 = {"size": [6, 4], "counts": "73305"}  # rows 1 to 3, columns 1 and 2
BOX_40_X_60 = {
    "size": [60, 40],
    "counts": "Rc0n0n00000000000000000000000000000000000000^b0",
}  # rows 10 to 39, columns 10 …
NOTHING = {"size": [60, 40], "counts": "P[2"}
LARGE = box((60, 40), 10, 10, 30, 20)


def test_run_lengths_of_coco():
    assert (decode_coco(coco_runs(BOX_4_X_6)) == box((6, 4), 1, 1, 3, 2)).all()
    assert (decode_coco(coco_runs(BOX_40_X_60)) == LARGE).all()
    assert (decode_coco(coco_runs({"size": [6, 4], "counts": [7, 3, 3, 3, 8]})) == box((6, 4), 1, 1, 3, 2)).all()
    assert not decode_coco(coco_runs(NOTHING)).any()
    assert decode_coco(coco_runs({"size": [6, 4], "counts": "0h0"})).all()


def test_run_lengths_agree_with_pycocotools():
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 90, 2)
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        runs = coco.encode(np.asfortranarray(mask))
        value = {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}
        assert (decode_coco(coco_runs(value)) == mask).all()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"size": [6, 4], "counts": "7330"}, "do not fill their 4 x 6 pixels"),
        ({"size": [6, 4], "counts": "7330h"}, "have a size"),  # the last number is cut
        ({"size": [6, 5], "counts": "73305"}, "do not fill their 5 x 6 pixels"),
        ({"size": [6, 4], "counts": [30, -6]}, "do not fill"),
        ({"size": [6], "counts": "73305"}, "have a size"),
        ({"counts": "73305"}, "have a size"),
        ({"size": [6, 4], "counts": "7€305"}, "have a size"),
        ([7, 3, 3, 3, 8], "have a size"),
    ],
)
def test_broken_run_lengths_are_refused(value, expected):
    with pytest.raises(MaskError, match=f"COCO's run lengths.*{expected}"):
        coco_runs(value)


# --- CheXlocalize ------------------------------------------------------------------------------------------------

OUTLINE = [[10.2, 10.7], [29.5, 10.0], [29.9, 39.4], [10.0, 39.0]]  # LARGE, by the pixels that hold its corners


@pytest.fixture
def chexlocalize_root(tmp_path) -> Path:
    root = tmp_path / "chexlocalize"
    films = root / "CheXpert"
    for name, size in {
        "val/patient64541/study1/view1_frontal.jpg": (60, 40),
        "val/patient64541/study1/view2_lateral.jpg": (60, 40),
        "test/patient64741/study1/view1_frontal.jpg": (30, 20),  # half the size
        "test/patient64741/study1/view2_frontal.jpg": (60, 40),
        "test/patient64742/study1/view1_frontal.jpg": (60, 40),
    }.items():
        write_picture(films / name, np.zeros(size, np.uint8))
    tables = {split: [] for split in ("val", "test")}
    for path in sorted(films.rglob("*.jpg")):
        name = path.relative_to(films).as_posix()
        split = name.partition("/")[0]
        shown = name if split == "test" else name.replace("val/", "valid/")  # as published, one way or the other
        tables[split].append(chexpert_row(shown, prefix="", Cardiomegaly="1.0", Age="60"))
    for split, rows in tables.items():
        write_csv(films / f"{split}_labels.csv", rows)
    drawn = {"Cardiomegaly": BOX_40_X_60, "Airspace Opacity": BOX_40_X_60, "Edema": NOTHING}
    nothing = dict.fromkeys(drawn, NOTHING)
    segmentations = {
        "val": {"patient64541_study1_view1_frontal": drawn, "patient64541_study1_view2_lateral": drawn},
        "test": {
            "patient64741_study1_view1_frontal": drawn,
            "patient64741_study1_view2_frontal": nothing | {"Edema": BOX_40_X_60},
            "patient99999_study1_view1_frontal": drawn,
        },
    }
    for split, content in segmentations.items():
        (root / "CheXlocalize").mkdir(exist_ok=True)
        (root / "CheXlocalize" / f"gt_segmentations_{split}.json").write_text(json.dumps(content))
    return root


def test_chexlocalize(chexlocalize_root):
    conversion = chexlocalize.convert(chexlocalize_root)
    studies = by_id(chexlocalize_root / "studies.jsonl")
    assert {name: (study.subject_id, study.split, len(study.images)) for name, study in studies.items()} == {
        "patient64541_study1": ("patient64541", "val", 1),
        "patient64741_study1": ("patient64741", "test", 2),
        "patient64742_study1": ("patient64742", "test", 1),
    }
    assert {study.source for study in studies.values()} == {"chexlocalize"}
    first, second = studies["patient64741_study1"].images
    assert set(first.masks) == {"Cardiomegaly", "Lung Opacity"}
    assert first.masks["Lung Opacity"].name == "patient64741_study1_view1_frontal.png"
    assert (mask_of(studies["patient64741_study1"], "Cardiomegaly") == box((30, 20), 5, 5, 15, 10)).all()
    assert set(second.masks) == {"Edema"}
    assert (mask_of(studies["patient64541_study1"], "Lung Opacity") == LARGE).all()
    assert not studies["patient64742_study1"].images[0].masks
    assert studies["patient64742_study1"].labels["Cardiomegaly"] == 1
    assert "Images with outlines: 5, of which 1 are in no table; images with masks: 3 of 4" in conversion.notes


def test_chexlocalize_laterals_have_masks_too(chexlocalize_root):
    chexlocalize.convert(chexlocalize_root, views="all")
    frontal, lateral = by_id(chexlocalize_root / "studies.jsonl")["patient64541_study1"].images
    assert (frontal.view, lateral.view) == ("AP", "LATERAL")
    assert frontal.masks.keys() == lateral.masks.keys() == {"Cardiomegaly", "Lung Opacity"}
    assert frontal.masks["Cardiomegaly"] != lateral.masks["Cardiomegaly"]


def test_chexlocalize_from_the_outlines(chexlocalize_root):
    folder = chexlocalize_root / "CheXlocalize"
    (folder / "gt_segmentations_val.json").unlink()
    beyond = [[-3, 5], [3, 5], [3, 8], [-3, 8]]
    found = {"img_size": [60, 40], "Cardiomegaly": [OUTLINE], "Pneumothorax": [OUTLINE, beyond], "Edema": []}
    (folder / "gt_annotations_val.json").write_text(json.dumps({"patient64541_study1_view1_frontal": found}))
    conversion = chexlocalize.convert(chexlocalize_root)
    study = by_id(chexlocalize_root / "studies.jsonl")["patient64541_study1"]
    assert set(study.images[0].masks) == {"Cardiomegaly", "Pneumothorax"}
    assert (mask_of(study, "Cardiomegaly") == LARGE).all()
    assert (mask_of(study, "Pneumothorax") == LARGE | box((60, 40), 5, 0, 4, 4)).all()
    assert "Boxes and outlines that reach beyond the film, cut at its edge: 1" in str(conversion)


def test_chexlocalize_errors(chexlocalize_root):
    table = chexlocalize_root / "CheXlocalize" / "gt_segmentations_test.json"
    name = "patient64741_study1_view1_frontal"
    for content, expected in (
        ({name: {"Hernia": BOX_40_X_60}}, rf"test\.json, {name}, Hernia: unknown finding\. Choices: Enlarged"),
        ({name: {"Edema": BOX_40_X_60 | {"size": [60, 41]}}}, rf"test\.json, {name}, Edema: COCO's run lengths do not"),
        ({name: {"Edema": {"size": [60, 40]}}}, rf"test\.json, {name}, Edema: COCO's run lengths have a size"),
        ([1], r"test\.json: expected an object of images"),
    ):
        table.write_text(json.dumps(content))
        with pytest.raises(CorpusError, match=expected):
            chexlocalize.convert(chexlocalize_root)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no gt_segmentations_test\.json.*chexlocalize"):
        chexlocalize.convert(chexlocalize_root)


def test_chexlocalize_a_mask_of_another_shape_than_its_film_is_left_out(chexlocalize_root):
    table = chexlocalize_root / "CheXlocalize" / "gt_segmentations_test.json"
    turned = {"size": [40, 60], "counts": [2400 - 5, 5]}
    table.write_text(json.dumps({"patient64741_study1_view1_frontal": {"Edema": turned, "Cardiomegaly": BOX_40_X_60}}))
    conversion = chexlocalize.convert(chexlocalize_root)
    assert set(by_id(chexlocalize_root / "studies.jsonl")["patient64741_study1"].images[0].masks) == {"Cardiomegaly"}
    assert "left out: 1 (first: image patient64741_study1_view1_frontal, Edema: The mask is of 60 x 40" in str(
        conversion
    )


def test_chexlocalize_of_one_split(chexlocalize_root):
    (chexlocalize_root / "CheXpert" / "test_labels.csv").unlink()
    (chexlocalize_root / "CheXlocalize" / "gt_segmentations_test.json").unlink()
    conversion = chexlocalize.convert(chexlocalize_root)
    assert [study.study_id for study in conversion.studies] == ["patient64541_study1"]
    assert (
        "No table of test (test.csv or test_labels.csv or groundtruth.csv): the split is left out" in conversion.notes
    )


# --- ChestX-Det, ChestX-Det10 ------------------------------------------------------------------------------------

DET_TRAIN, DET_VAL = named("train", NO_VAL), named("val", NO_VAL)


def square(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def entry(name: str, *found: tuple[str, list[int]], polygons: bool = True) -> dict:
    """As both sets have it: corners of boxes and outlines are pixels that belong to them."""
    row = {"file_name": f"{name}.png", "syms": [sym for sym, _ in found], "boxes": [corners for _, corners in found]}
    return row | ({"polygons": [square(*corners) for _, corners in found]} if polygons else {})


@pytest.fixture(params=[True, False], ids=["outlines", "boxes"])
def chestx_det_root(tmp_path, request) -> Path:
    root = tmp_path / "det"
    for part, names in {"train": (DET_TRAIN, DET_VAL), "test": ("36199", "36302")}.items():
        for name in names:
            write_picture(root / f"{part}_data" / part / f"{name}.png", np.zeros((1024, 1024), np.uint8))
    nodules = [("Nodule", [100, 200, 149, 239]), ("Nodule", [300, 400, 309, 409])]
    train = [
        entry(DET_TRAIN, *nodules, ("Mass", [1000, 1000, 1100, 1030]), polygons=request.param),
        entry(DET_VAL, polygons=request.param),
        entry("gone", ("Mass", [1, 1, 5, 5]), polygons=request.param),
    ]
    test = [entry("36199", polygons=request.param), entry("36302", ("Effusion", [0, 0, 9, 9]), polygons=request.param)]
    prefix = "ChestX_Det_" if request.param else ""
    (root / f"{prefix}train.json").write_text(json.dumps(train))
    (root / f"{prefix}test.json").write_text(json.dumps(test))
    return root


def test_chestx_det(chestx_det_root):
    conversion = chestx_det.convert(chestx_det_root)
    studies = by_id(chestx_det_root / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {
        DET_TRAIN: "train",
        DET_VAL: "val",
        "36199": "test",
        "36302": "test",
    }
    findings = chestx_det.THIRTEEN if (chestx_det_root / "ChestX_Det_train.json").is_file() else chestx_det.TEN
    assert {tuple(study.labels) for study in studies.values()} == {(*findings, "No Finding")}
    assert {name for name, label in studies[DET_TRAIN].labels.items() if label} == {"Nodule", "Mass"}
    assert {name for name, label in studies["36199"].labels.items() if label} == {"No Finding"}
    shape = (1024, 1024)
    both = box(shape, 200, 100, 40, 50) | box(shape, 400, 300, 10, 10)
    assert (mask_of(studies[DET_TRAIN], "Nodule") == both).all()
    assert (mask_of(studies[DET_TRAIN], "Mass") == box(shape, 1000, 1000, 24, 24)).all()
    assert (mask_of(studies["36302"], "Effusion") == box(shape, 0, 0, 10, 10)).all()
    assert set(studies["36302"].images[0].masks) == {"Effusion"}
    assert all(study.extra["unknown_patient"] for study in studies.values())
    assert dropped(conversion) == {"no image file on disk": 1}
    assert "Images without any finding, healthy: 2" in conversion.notes
    assert "Boxes and outlines that reach beyond the film, cut at its edge: 1" in str(conversion)
    chestx_det.convert(chestx_det_root)  # its own masks are no films
    assert by_id(chestx_det_root / "studies.jsonl").keys() == studies.keys()


def test_chestx_det_of_resized_films(chestx_det_root):
    for path in chestx_det_root.rglob("*_data/*/*.png"):
        write_picture(path, np.zeros((512, 512), np.uint8))
    chestx_det.convert(chestx_det_root)
    study = by_id(chestx_det_root / "studies.jsonl")[DET_TRAIN]
    assert (mask_of(study, "Nodule") == box((512, 512), 100, 50, 20, 25) | box((512, 512), 200, 150, 5, 5)).all()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (entry("1", ("Hernia", [1, 1, 5, 5])), r"_test\.json entry 1: unknown finding 'Hernia'\. Choices: Atelectasis"),
        (
            entry("1") | {"syms": ["Mass"]},
            r"_test\.json entry 1, 1\.png: syms, boxes and polygons must be lists of one",
        ),
        (entry("1") | {"boxes": None}, r"entry 1, 1\.png: syms, boxes and polygons"),
        ({"syms": []}, r"entry 1: expected an object with file_name"),
        (entry("1", ("Mass", [1, 1, 5, 5])) | {"polygons": [[[1, 1], [2]]]}, r"entry 1, Mass: An outline"),
        (
            entry("1", ("Mass", [1, 5]), polygons=False),
            r"entry 1, Mass: a box is x1, y1, x2, y2 in pixels, got \[1, 5\]",
        ),
        (entry("1", ("Mass", ["1", 1, 5, 5]), polygons=False), r"entry 1, Mass: a box is"),
    ],
)
def test_chestx_det_errors(tmp_path, row, expected):
    (tmp_path / "ChestX_Det_train.json").write_text(json.dumps([entry("2")]))
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps([row]))
    with pytest.raises(CorpusError, match=expected):
        chestx_det.convert(tmp_path)


def test_chestx_det_with_a_repeated_image(tmp_path):
    for name in (DET_TRAIN, "2"):
        write_picture(tmp_path / f"{name}.png", np.zeros((1024, 1024), np.uint8))
    first, second = (entry(DET_TRAIN, (finding, [-5, 1, 5, 5])) for finding in ("Mass", "Nodule"))
    (tmp_path / "ChestX_Det_train.json").write_text(json.dumps([first, second]))
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps([entry("2")]))
    conversion = chestx_det.convert(tmp_path)
    study = by_id(tmp_path / "studies.jsonl")[DET_TRAIN]
    assert (len(study.images), study.labels["Mass"], study.labels["Nodule"]) == (1, 1, 0)
    assert set(study.images[0].masks) == {"Mass"}
    assert "Rows that repeat an image, left out: 1" in conversion.notes
    assert "Rows whose labels differ from the first of their study, which count: 1" in conversion.notes
    assert "Boxes and outlines that reach beyond the film, cut at its edge: 1" in conversion.notes
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps([entry("2"), entry(DET_TRAIN)]))
    with pytest.raises(
        CorpusError, match=r"ChestX_Det_test\.json entry 2: study .* in split 'test'; earlier .*'train'"
    ):
        chestx_det.convert(tmp_path)


def test_a_box_outside_of_its_film_is_left_out(tmp_path):
    for name in ("1", "2"):
        write_picture(tmp_path / f"{name}.png", np.zeros((1024, 1024), np.uint8))
    outside = [("Mass", [1100, 5, 1200, 50]), ("Nodule", [50, 9, 40, 20])]  # the second is inverted
    (tmp_path / "train.json").write_text(json.dumps([entry("1", *outside, polygons=False)]))
    (tmp_path / "test.json").write_text(json.dumps([entry("2", polygons=False)]))
    conversion = chestx_det.convert(tmp_path)
    assert not by_id(tmp_path / "studies.jsonl")["1"].images[0].masks
    assert "Boxes without an area in the film, left out: 2" in str(conversion)


# --- MS-CXR ------------------------------------------------------------------------------------------------------

MS_ROW = {"dicom_id": "", "category_name": "Pneumonia", "label_text": "Right basal pneumonia", "path": ""}
MS_SIZE = {"image_width": "40", "image_height": "60"}


def ms_row(path: str, corners: tuple[int, int, int, int], split: str = "test", **values: str) -> dict[str, str]:
    sides = dict(zip("xywh", map(str, corners), strict=True))
    return MS_ROW | {"dicom_id": Path(path).stem, "path": f"files/{path}"} | sides | MS_SIZE | {"split": split} | values


@pytest.fixture
def ms_root(tmp_path) -> Path:
    root, images = tmp_path / "ms-cxr", tmp_path / "mimic-cxr-jpg"
    paths = ["p10/p10000001/s50000001/a-1.jpg", "p10/p10000001/s50000001/b-2.jpg", "p11/p11000002/s50000002/c-3.jpg"]
    for path in paths:
        write_picture(images / "files" / path, np.zeros((60, 40), np.uint8))
    rows = [
        ms_row(paths[0], (10, 10, 20, 30)),
        ms_row(paths[0], (0, 50, 8, 20), label_text="and on the left"),  # reaches beyond the film
        ms_row(paths[0], (1, 2, 3, 4), category_name="Edema"),
        ms_row(paths[1], (10, 10, 20, 30), category_name="Edema"),
        ms_row(paths[2], (45, 10, 5, 5), split="train", category_name="Pneumothorax"),  # outside of the film
    ]
    write_csv(root / "MS_CXR_Local_Alignment_v1.1.0.csv", rows)
    splits = [(path, "train" if "p10000001" in path else "validate") for path in paths]
    write_csv(
        images / "mimic-cxr-2.0.0-split.csv", [{"dicom_id": Path(path).stem, "split": part} for path, part in splits]
    )
    return root


def test_ms_cxr(ms_root):
    conversion = ms_cxr.convert(ms_root, ms_root.parent / "mimic-cxr-jpg")
    studies = by_id(ms_root / "studies.jsonl")
    assert {name: (study.subject_id, study.split, study.labels) for name, study in studies.items()} == {
        "s50000001": ("p10000001", "train", {"Pneumonia": 1, "Edema": 1}),
        "s50000002": ("p11000002", "val", {"Pneumothorax": 1}),
    }
    first, second = studies["s50000001"].images
    drawn = box((60, 40), 10, 10, 30, 20) | box((60, 40), 50, 0, 10, 8)
    assert (mask_of(studies["s50000001"], "Pneumonia") == drawn).all()
    assert (mask_of(studies["s50000001"], "Edema") == box((60, 40), 2, 1, 4, 3)).all()
    assert set(second.masks) == {"Edema"}
    assert first.extra["phrases"][:2] == [
        {"label": "Pneumonia", "text": "Right basal pneumonia", "box": [10, 10, 30, 40]},
        {"label": "Pneumonia", "text": "and on the left", "box": [0, 50, 8, 70]},
    ]
    assert not studies["s50000002"].images[0].masks
    assert studies["s50000002"].images[0].extra["phrases"] == []
    assert "Boxes and outlines that reach beyond the film, cut at its edge: 1" in str(conversion)
    assert "Boxes without an area in the film, left out: 1" in str(conversion)


def test_ms_cxr_with_repeated_rows(ms_root):
    rows = [ms_row("p10/p10000001/s50000001/a-1.jpg", (10, 10, 20, 30), label_text=text) for text in "aab"]
    write_csv(ms_root / "MS_CXR_Local_Alignment_v1.1.0.csv", rows)
    conversion = ms_cxr.convert(ms_root, ms_root.parent / "mimic-cxr-jpg")
    [image] = by_id(ms_root / "studies.jsonl")["s50000001"].images
    assert [phrase["text"] for phrase in image.extra["phrases"]] == ["a", "b"]
    assert "Rows that repeat a phrase and its box, left out: 1" in conversion.notes


def test_ms_cxr_with_its_own_split(ms_root):
    images = ms_root.parent / "mimic-cxr-jpg"
    (images / "mimic-cxr-2.0.0-split.csv").unlink()
    conversion = ms_cxr.convert(ms_root, images, split="ms-cxr")
    assert all(study.extra["own_split"] for study in conversion.studies)
    studies = by_id(ms_root / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {"s50000001": "test", "s50000002": "train"}
    with pytest.raises(FileNotFoundError, match=r"there is no mimic-cxr-2\.0\.0-split\.csv"):
        ms_cxr.convert(ms_root, images)
    with pytest.raises(CorpusError, match="--split ms-cxr reads no table of MIMIC-CXR"):
        ms_cxr.convert(ms_root, images, tables=images, split="ms-cxr")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"category_name": "Hernia"}, r"v1\.1\.0\.csv line 2: unknown category_name 'Hernia'\. Choices: Atelectasis"),
        ({"path": "x.jpg"}, r"line 2: path must end like p10/p10000032/s50414267/x\.jpg, got 'x\.jpg'"),
        ({"path": "files/p10/p10000001/s50000001/z.jpg"}, r"line 2: image 'z' is not in the split of MIMIC-CXR"),
        ({"w": "wide"}, r"line 2: w must be a number, got 'wide'"),
        ({"image_width": "inf"}, r"line 2: image_width must be a number, got 'inf'"),
        ({"x": ""}, r"line 2: x, y, w, h, image_width, image_height must not be blank"),
    ],
)
def test_ms_cxr_errors(ms_root, values, expected):
    row = ms_row("p10/p10000001/s50000001/a-1.jpg", (10, 10, 20, 30)) | values
    write_csv(ms_root / "MS_CXR_Local_Alignment_v1.1.0.csv", [row])
    with pytest.raises(CorpusError, match=expected):
        ms_cxr.convert(ms_root, ms_root.parent / "mimic-cxr-jpg")


# --- VinDr-PCXR --------------------------------------------------------------------------------------------------


def test_vindr_pcxr(tmp_path):
    names = {named("train", NO_VAL): "train", named("val", NO_VAL): "val", "t1": "test"}
    rows = [
        {"image_id": name, "rad_ID": "R1", "No finding": str(int(part == "test")), "Brocho-pneumonia": "1"}
        for name, part in names.items()
    ]
    write_csv(tmp_path / "image_labels_train.csv", rows[:2])
    write_csv(tmp_path / "image_labels_test.csv", rows[2:])
    train, val, test = names
    write_dicom(tmp_path / "train" / f"{train}.dicom", PatientAge="018M", PatientSex="F", ViewPosition="AP")
    write_dicom(tmp_path / "train" / f"{val}.dicom", PatientAge="000Y", PatientSex="M")
    write_dicom(tmp_path / "test" / f"{test}.dicom", PatientAge="007Y")
    vindr_pcxr.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == names
    assert studies[train].labels == {"No finding": 0, "Brocho-pneumonia": 1}
    assert studies[test].labels == {"No finding": 1, "Brocho-pneumonia": 1}
    assert [study.patient for study in studies.values()] == [
        {"sex": "F", "age": 1.5},
        {"sex": "M", "age": 0},
        {"sex": None, "age": 7},
    ]
    assert [study.images[0].view for study in studies.values()] == ["AP", None, None]
    assert all(study.extra["unknown_patient"] for study in studies.values())
