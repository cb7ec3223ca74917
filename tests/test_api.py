"""`raddraft.load_model`: drafts of files, folders and studies, one by one or as a list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import raddraft
from generator.api import Model, find_studies
from generator.drafter import Drafter
from generator.generate import BANNER, Draft
from raddraft.studies import read_studies
from tests.conftest import make_study
from tests.test_prompts import EVERYTHING

FEW = {"max_new_tokens": 20}


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return raddraft.load_model(model_folder, "cpu")


def test_three_lines_print_a_draft(model_folder, studies_file, capsys) -> None:
    film = studies_file.parent / "33.png"
    code = f'import raddraft\nmodel = raddraft.load_model("{model_folder}")\nprint(model.draft("{film}"))'
    exec(code, {})
    assert capsys.readouterr().out.strip() == str(raddraft.load_model(model_folder).draft(film))


def test_a_file_is_one_draft_and_files_folders_and_studies_are_a_list(model, studies_file) -> None:
    folder = studies_file.parent
    one = model.draft(folder / "33.png", **FEW)
    assert isinstance(one, Draft)
    assert one.study_id == str(folder / "33.png")
    assert one.text
    assert (str(one), one.banner, one.error, one.observations, one.confidence) == (one.text, BANNER, None, None, None)
    assert model.draft([str(folder / "33.png"), folder / "33.png"], **FEW) == [one]
    every = model.draft(str(folder), **FEW)
    assert len(every) == 40
    assert one in every
    studies = read_studies(studies_file, "test")
    assert [draft.study_id for draft in model.draft(studies, **FEW)] == [study.study_id for study in studies]
    of_study = model.draft(studies[0], **FEW)
    view, indication = studies[0].main_image.view, studies[0].sections["indication"]
    same = model.draft(studies[0].main_image.path, view=view, indication=indication, **FEW)
    assert of_study.text == same.text
    assert (of_study.study_id, same.study_id) == ("s32", str(folder / "32.png"))


def test_drafts_come_one_by_one(model, studies_file) -> None:
    stream = model.stream(read_studies(studies_file, "test"), batch_size=1, **FEW)
    passes = []
    hook = model.drafter.model.register_forward_hook(lambda *_: passes.append(1))
    assert next(stream).study_id == "s32"
    after_one = len(passes)
    assert next(stream).study_id == "s33"
    hook.remove()
    assert 0 < after_one < len(passes), "the second study is decoded when it is asked for"
    stream.close()


def test_an_unreadable_image_has_an_error_in_a_list_and_raises_alone(model, studies_file) -> None:
    bad, good = studies_file.parent / "33.png", studies_file.parent / "32.png"
    bad.write_bytes(b"")
    drafts = model.draft([bad, good], **FEW)
    assert {draft.study_id: bool(draft.error) for draft in drafts} == {str(bad): True, str(good): False}
    with pytest.raises(raddraft.RadDraftError, match=r"33\.png: the file is empty"):
        model.draft(bad, **FEW)


def test_candidates_and_confidence(model, studies_file) -> None:
    draft = model.draft(studies_file.parent / "33.png", candidates=3, confidence=True, **FEW)
    assert len(draft.candidates) == 3
    assert draft.text == draft.candidates[0]
    assert all({"sentence", "log_prob", "agreement"} == row.keys() for row in draft.confidence)


def test_what_cannot_be_drafted_is_refused(model, studies_file, tmp_path) -> None:
    study = read_studies(studies_file)[0]
    with pytest.raises(raddraft.RadDraftError, match="Study 's0' holds its own indication and view; leave them out"):
        model.draft(study, view="PA")
    (tmp_path / "empty").mkdir()
    with pytest.raises(raddraft.RadDraftError, match=r"No image in .*empty"):
        model.draft(tmp_path / "empty")
    with pytest.raises(TypeError, match="unexpected keyword argument 'beams'"):
        model.draft(study, beams=3)
    with pytest.raises(raddraft.RadDraftError, match="Tokens can be proposed to plain greedy decoding only"):
        model.draft(study, speculate=studies_file, num_beams=2)


@pytest.mark.parametrize("images", [None, 5, b"film.png", "", [None], ["film.png", ""]])
def test_what_is_no_image_file_is_refused(model, images) -> None:
    with pytest.raises(
        ValueError, match=r"Expected (an image file, a folder or a study|image files, folders or studies)"
    ):
        model.draft(images)


@pytest.mark.parametrize("options", [{"max_new_tokens": "5"}, {"batch_size": 1.5}, {"candidates": True}])
def test_numbers_of_wrong_types_are_refused(model, studies_file, options) -> None:
    with pytest.raises(ValueError, match=r"decode\.\w+ must be a whole number, got "):
        model.draft(studies_file.parent / "33.png", **options)


def test_a_tower_may_be_named_by_a_path(tower_folder) -> None:
    assert raddraft.load_tower(Path(tower_folder)).shape == raddraft.load_tower(str(tower_folder)).shape


def test_a_model_that_reads_priors_warns_where_there_is_none(model, studies_file) -> None:
    drafter: Drafter = replace(model.drafter, prompt=EVERYTHING)
    with pytest.warns(UserWarning, match="reads the subject's prior study, and no study here has one"):
        Model(drafter, "model").draft(studies_file.parent / "33.png", view="AP", indication="cough.", **FEW)


def test_files_have_their_paths_as_ids(tmp_path, monkeypatch) -> None:
    make_study(tmp_path, 1, "test")
    monkeypatch.chdir(tmp_path)
    (study,) = find_studies([Path("1.png"), "."], "cough", "AP")
    assert (study.study_id, study.main_image.path, study.main_image.view) == ("1.png", tmp_path / "1.png", "AP")
    assert study.sections == {"indication": "cough"}
