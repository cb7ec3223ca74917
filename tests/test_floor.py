"""The shared floor: files, statistics, text and the configs of runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

import raddraft
from raddraft.errors import DivergedError, RadDraftError, UnavailableError
from raddraft.files import cut_log, digest_file, digest_json, read_jsonl, whole_folder, write_json, write_jsonl
from raddraft.runs import keep_config, to_yaml
from raddraft.stats import difference, draw, holm, interval, mean_measure, p_value, resample
from raddraft.text import format_estimate, format_table, slug

# ---- errors and the front door


def test_own_errors_are_one_family_and_still_what_callers_catch() -> None:
    assert issubclass(RadDraftError, ValueError)
    assert issubclass(UnavailableError, OSError)
    assert issubclass(DivergedError, FloatingPointError)
    assert issubclass(UnavailableError, RadDraftError)
    assert issubclass(DivergedError, RadDraftError)


def test_the_front_door_has_the_names_it_lists_and_no_others() -> None:
    for name in raddraft.__all__:
        assert callable(getattr(raddraft, name)), name
    with pytest.raises(AttributeError, match=r"no attribute 'scores'. Choices: .*score"):
        _ = raddraft.scores


# ---- files


def test_json_lines_are_written_and_read_with_their_places(tmp_path) -> None:
    rows = [{"study_id": "a", "x": 1}, {"study_id": "ö", "x": None}]
    assert write_jsonl(tmp_path / "x.jsonl", rows) == 2
    found = list(read_jsonl(tmp_path / "x.jsonl", ["study_id"], "study_id"))
    assert found == [("x.jsonl line 1", rows[0]), ("x.jsonl line 2", rows[1])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"study_id": "a"}\n{"study_id": ', "x.jsonl line 2: not valid JSON: Expecting value at character 14"),
        ("\n[1]", "x.jsonl line 2: expected an object, got list"),
        ("{}", "x.jsonl line 1: key 'study_id' is missing"),
        ('{"study_id": 3}', "x.jsonl line 1: study_id must be a string, got 3"),
        ('{"study_id": "a"}\n\n{"study_id": "a"}', "x.jsonl line 3: duplicate study_id 'a', first on line 1"),
    ],
)
def test_faults_of_json_lines_are_named(tmp_path, text, message) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(RadDraftError) as error:
        list(read_jsonl(tmp_path / "x.jsonl", ["study_id"], "study_id"))
    assert str(error.value) == message


def test_a_failed_folder_leaves_the_old_one(tmp_path) -> None:
    for word, fails in (("old", False), ("new", True)):
        try:
            with whole_folder(tmp_path / "model") as folder:
                (folder / "file").write_text(word)
                assert not fails
        except AssertionError:
            pass
    assert (tmp_path / "model" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_log_loses_what_runs_again_and_a_cut_line(tmp_path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(4)) + '{"step": 4')
    cut_log(log, lambda row: row["step"] < 3)
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [0, 1, 2]


def test_digests(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert digest_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_file(tmp_path / "y") is None
    assert digest_json({"a": 1, "b": Path("c")}) == digest_json({"b": "c", "a": 1}) != digest_json({"a": 1})
    write_json(tmp_path / "z.json", {"path": tmp_path})
    assert json.loads((tmp_path / "z.json").read_text()) == {"path": str(tmp_path)}


# ---- statistics


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_rows_of_a_subject_are_drawn_together_and_single_rows_one_by_one() -> None:
    subjects = ["b", "a", "b", "c", "c", "c"]
    counts = np.concatenate(list(draw(subjects, 200, 1)))
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, [3]] == counts[:, 3:]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all(), "as many subjects as there are"
    rows = np.concatenate(list(draw(np.arange(5), 200, 1)))
    assert (rows.sum(1) == 5).all()
    drawn = np.random.default_rng(1).integers(0, 5, (200, 5))
    np.testing.assert_array_equal(rows, [np.bincount(row, minlength=5) for row in drawn])


def test_four_copies_of_each_study_do_not_halve_the_interval_of_subjects() -> None:
    scores = np.random.default_rng(0).random(60)
    once = interval(resample([mean_measure(scores, "x")], 400)[0])
    copies = mean_measure(np.repeat(scores, 4), "x")
    by_subject = interval(resample([copies], 400, subjects=np.repeat(np.arange(60), 4).astype(str))[0])
    by_study = interval(resample([copies], 400)[0])
    assert once
    assert by_subject
    assert by_study
    width, width_once, naive = (one.high - one.low for one in (by_subject, once, by_study))
    assert width == pytest.approx(width_once, rel=0.2)
    assert 1.7 < width / naive < 2.3


def test_what_is_undefined_is_left_out_and_nothing_defined_is_none() -> None:
    assert interval(np.array([np.nan, 1.0, 3.0])) == interval(np.array([1.0, 3.0]))
    assert interval(np.array([np.nan])) is None
    assert difference(1.0, np.array([np.nan])) is None
    found = difference(0.2, np.array([0.1, 0.2, 0.3, np.nan]))
    assert found
    assert found["p"] == p_value(np.array([0.1, 0.2, 0.3])) == 2 * (0 + 1) / (3 + 1)


# ---- text


def test_tables_and_numbers() -> None:
    table = format_table([["", "n", "dice"], ["lungs", 1234, format_estimate(0.9, 0.8, 0.95)], ["heart", 5, "-"]])
    assert (
        table
        == "           n                 dice\nlungs  1,234  0.900 [0.800 0.950]\nheart      5                    -"
    )
    assert (format_estimate(None), format_estimate(0.5)) == ("-", "0.500")
    assert slug("google/medgemma 4b_it") == "google-medgemma-4b_it"


# ---- configs of runs


@dataclass
class Stage:
    """A stage."""

    lr: float = 1e-3


def test_a_run_goes_on_with_harmless_changes_and_no_others(tmp_path) -> None:
    path = tmp_path / "run" / "config.yaml"
    config = {"train": {"stages": (Stage(), Stage(2e-3)), "workers": 2}, "studies": Path("s.jsonl")}
    keep_config(path, {**config, "studies": Path("typo.jsonl")})
    keep_config(path, config)  # nothing had begun
    (path.parent / "log.jsonl").touch()
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(to_yaml(config))
    keep_config(path, {**config, "train": {**config["train"], "workers": 0}})
    with pytest.raises(RadDraftError, match=r"train\.stages\.1\.lr was 0\.002, now 0\.005; choose another --out"):
        keep_config(path, {**config, "train": {**config["train"], "stages": (Stage(), Stage(5e-3))}})


@pytest.mark.parametrize("result", ["model", "tower"])
def test_a_result_that_no_run_has_left_is_not_replaced(tmp_path, result) -> None:
    (tmp_path / result).mkdir()
    with pytest.raises(RadDraftError, match=rf"{result} is there, without the config\.yaml of the run"):
        keep_config(tmp_path / "config.yaml", {"tower": f"{tmp_path}/{result}"}, result)
    (tmp_path / "log.jsonl").touch()  # a run has begun, and its config was removed
    keep_config(tmp_path / "config.yaml", {"tower": "pixels"}, result)
    keep_config(tmp_path / "config.yaml", {"tower": "pixels"}, result)


def test_a_run_of_an_older_version_is_refused_by_a_sentence(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("image_mapping: minmax\ntrain: {workers: 2}\n")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(RadDraftError, match=r"holds a run of another version of RadDraft .*image_mapping"):
        keep_config(tmp_path / "config.yaml", {"gray_mapping": "minmax", "train": {"workers": 2}})
