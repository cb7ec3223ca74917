"""generator/retrieve.py and `raddraft retrieve`: the nearest training report, and what neighbors agree on."""

from __future__ import annotations

import json

import pytest
import torch

from generator.prompts import PromptConfig
from generator.retrieve import nearest, shared_sentences, vote
from raddraft.studies import read_studies
from tests.test_cli import run


def test_nearest_is_the_highest_cosine_of_standardised_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    training = torch.randn(50, 8, generator=generator) * torch.arange(1, 9) + 5
    queries = torch.randn(7, 8, generator=generator) * torch.arange(1, 9) + 5
    found = nearest(queries, training, k=3, batch=2)
    mean, scale = training.mean(0), training.std(0, correction=0)
    cosines = torch.nn.functional.cosine_similarity(
        ((queries - mean) / scale)[:, None], ((training - mean) / scale)[None], dim=-1
    )
    expected = cosines.sort(dim=1, descending=True)
    assert torch.equal(found.indices, expected.indices[:, :3])
    torch.testing.assert_close(found.similarities, expected.values[:, :3], atol=1e-5, rtol=0)
    assert nearest(training, training).indices[:, 0].tolist() == list(range(50)), "every study is nearest to itself"
    assert nearest(queries, training[:2], k=5).indices.shape == (7, 2)
    assert nearest(queries[:0], training).indices.shape == (0, 1)
    for broken in ((queries, training[:0], 1), (queries, training, 0)):
        with pytest.raises(ValueError, match="at least one training study and one neighbor"):
            nearest(*broken)


def test_neighbors_vote_for_the_report_they_agree_on() -> None:
    heart = ["The heart is normal.", "The heart size is normal.", "The heart is normal in size."]
    reports = ["Large left effusion.", *heart]
    assert vote(reports, [0.9, 0.8, 0.8, 0.8]) == 1, "mean ROUGE-L .84 to the two others; .81 and .76"
    assert vote(reports[:1], [0.3]) == 0
    assert vote(["a b", "a b"], [0.9, 0.9]) == 0, "a tie goes to the nearest"
    assert vote(["x", "y", "y z"], [0.99, 0.0, 0.5]) == 1, "who is far has no say, but may be chosen"


def test_command_drafts_a_split(tmp_path, tower_folder, studies_file, capsys) -> None:
    known = {study.study_id: study for study in read_studies(studies_file)}
    broken = next(study for study in known.values() if study.split == "test")
    broken.images[0].path.write_bytes(b"no picture")
    common = ("--tower", tower_folder, "--studies", studies_file, "--features", tmp_path / "features", "--workers", 0)
    for k in (1, 3):
        out = tmp_path / f"{k}.jsonl"
        assert run("retrieve", *common, "--out", out, "--k", k)[0] == 1, "one picture could not be read"
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert len(rows) == 7
        training = {study.sections["findings"] for study in known.values() if study.split == "train"}
        for row in rows:
            assert row["subject_id"] == known[row["study_id"]].subject_id
            assert row["reference"] == known[row["study_id"]].sections["findings"]
            assert len(row["candidates"]) == k
            assert row["prediction"] in row["candidates"]
            assert set(row["candidates"]) <= training
    shown = capsys.readouterr().out
    assert f"no features: {broken.images[0].path}" in shown
    assert "7 of 8 drafts" in shown
    assert "DRAFT for a radiologist" in shown
    assert run("score", tmp_path / "1.jsonl", tmp_path / "3.jsonl", "--metrics", "rouge")[0] == 0
    assert run("retrieve", *common, "--out", out, "--targets", "impression") == (
        1,
        "raddraft retrieve: No training study has the sections impression",
    )


def test_neighbors_are_other_subjects() -> None:
    vectors = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    subjects = ["a", "a", "b", "b", "c", "c"]
    found = nearest(vectors, vectors, 5, batch=4, subjects=(subjects, subjects))
    for row, (indices, cosines) in enumerate(zip(found.indices.tolist(), found.similarities.tolist(), strict=True)):
        assert {subjects[i] for i in indices[:4]} == set(subjects) - {subjects[row]}
        assert cosines[4] == -torch.inf, "only four are left"


def test_sentences_are_ranked_by_the_reports_that_share_them() -> None:
    reports = ["Edema. Clear lungs. Clear lungs.", "Effusion. Edema.", "Clear lungs.", "Fracture. Edema."]
    assert shared_sentences(reports, [0.9, 0.8, 0.6, -0.2], 2) == "Edema. Clear lungs."
    assert shared_sentences(reports, [0.9, 0.8, 0.6, -0.2], 9) == "Edema. Clear lungs. Effusion."
    assert shared_sentences(reports, [-torch.inf] * 4, 9) == ""


def test_command_gives_every_study_its_neighbors_sentences(tmp_path, tower_folder, studies_file) -> None:
    known = {study.study_id: study for study in read_studies(studies_file)}
    out, augmented = tmp_path / "out.jsonl", tmp_path / "elsewhere" / "similar.jsonl"
    augmented.parent.mkdir()
    arguments = (
        "--tower",
        tower_folder,
        "--studies",
        studies_file,
        "--features",
        tmp_path / "features",
        "--workers",
        0,
    )
    assert run("retrieve", *arguments, "--out", out, "--k", 1, "--augmented", augmented) == (0, "")
    similar = read_studies(augmented, check_images=True)
    training = {study.sections["findings"]: study for study in known.values() if study.split == "train"}
    assert [study.study_id for study in similar] == list(known)
    for study in similar:
        assert study.sections.pop("similar") in training
        assert study.sections == known[study.study_id].sections
    context = PromptConfig(context=["similar"])
    similar[0].sections["similar"] = "Clear lungs."
    assert "Similar: Clear lungs." in str(context.messages(similar[0], similar[0].main_image))
