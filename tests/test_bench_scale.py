"""What is held of each study stays small, and the bench that measures it finds what kills leave."""

from __future__ import annotations

import random
import sys
import tracemalloc

import numpy as np

from benchmarks.scale import killed, main
from generator.clinic.reading.decisions import Reads
from generator.clinic.reading.worklist import Drafted
from generator.config import DecodeConfig
from generator.generate import generate
from generator.model import load
from metrics import extras, text
from metrics.caveats import alike
from metrics.read import read_subjects
from metrics.scoring import read_labels
from raddraft.files import cut_log, write_jsonl
from raddraft.studies import Study, read_studies

LONG = "The heart is normal in size. No pleural effusion or pneumothorax is seen on this film. " * 20


def held(function) -> tuple[object, int, int]:
    """What a function returns, the bytes that it leaves behind, and the most that it took meanwhile."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = function()
    after, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found, after - before, peak - before


def test_decisions_are_the_same_after_a_kill(capsys) -> None:
    assert main([20, 40], only=["decisions"], films=4, kill=True) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:2] for row in rows[1:]] == [["decisions", "20"], ["decisions", "40"]]
    assert all(row.endswith(("equal", "ended before")) for row in rows[1:])


def test_what_differs_after_a_kill_is_named(tmp_path) -> None:
    """A command that goes on where another has begun, without a look at what is there."""
    out = tmp_path / "out.jsonl"
    begin = f"import os; new = not os.path.exists({str(out)!r}); open({str(out)!r}, 'a').write('x')"
    command = [sys.executable, "-c", f"{begin}; sum(range(10**9 * new))"]
    out.write_text("x")
    assert killed(command, out, 0.5) == "out.jsonl differs (after 0.5 s)"


def test_drafting_keeps_no_text_of_a_study(random_model, studies_file, tmp_path) -> None:
    drafter, studies = load(random_model), read_studies(studies_file, "train")
    generate(drafter, studies, tmp_path / "drafts.jsonl", DecodeConfig(max_new_tokens=2), "m")
    generate(drafter, studies, tmp_path / "drafts.jsonl", DecodeConfig(max_new_tokens=2), "m")  # resumed
    assert not [study.study_id for study in studies if {"sections", "images"} & vars(study).keys()]
    examples = drafter.encode(studies, answers=False)
    before = sum(map(len, (examples._text.values, examples._answer.values, examples._rest.values)))
    first = [examples[row] for row in range(len(examples))]
    assert first == examples[:]
    assert sum(map(len, (examples._text.values, examples._answer.values, examples._rest.values))) == before == 0


def test_scores_are_counted_part_by_part(monkeypatch) -> None:
    """Of texts that share no 4-grams, 53 bytes a token; 140 with all tokens at once."""
    generator, words = random.Random(0), [f"word{number}" for number in range(300)]
    texts = [" ".join(generator.choices(words, k=60)) for _ in range(1_000)]
    others = texts[1:] + texts[:1]
    at_once = extras.coco(texts, others), extras.sentence_bleu(texts, others)
    monkeypatch.setattr(text, "PART", 100)
    monkeypatch.setattr(text, "KEPT", 0)
    (coco, bleu), _, peak = held(lambda: (extras.coco(texts, others), extras.sentence_bleu(texts, others)))
    assert peak < 80 * 2 * 60 * len(texts)
    for now, before in zip((coco, bleu), at_once, strict=True):
        assert all(np.array_equal(now[name].statistics, one.statistics) for name, one in before.items())


def test_decisions_stay_in_their_file(tmp_path) -> None:
    def decide(reads: Reads, count: int) -> None:
        for number in range(count):
            study = Study(f"s{number}", f"p{number}", "test", [])
            reads.append(study, Drafted(f"{number} {LONG}", "m", weights="w"), f"{LONG} {number}", "", 1.0, LONG)

    reads = Reads(tmp_path / "reads.jsonl", "A")
    _, left, _ = held(lambda: decide(reads, 200))
    assert left < 200 * 800, "a decision takes less than its texts"
    last = reads.latest("s199", "m", "w")
    assert last is not None
    assert (last.decision, last.final, last.draft) == ("corrected", f"{LONG} 199", f"199 {LONG}")
    reads.close()
    again, left, _ = held(lambda: Reads(tmp_path / "reads.jsonl", "A"))
    assert left < 200 * 800
    assert isinstance(again, Reads)
    assert again.latest("s7", "other name", "w") == reads.latest("s7", "m", "w")
    assert again.decision("s7", "m", "w") == "corrected"
    assert again.decision("s7", "m", "others") is None
    again.close()


def test_logs_and_subjects_are_read_line_by_line(tmp_path) -> None:
    path = tmp_path / "drafts.jsonl"
    write_jsonl(path, ({"study_id": f"s{n}", "subject_id": "p", "prediction": LONG} for n in range(500)))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"study_id": "cut')
    _, _, peak = held(lambda: cut_log(path, lambda row: True))
    assert path.read_bytes() == whole
    assert peak < len(whole) / 4
    subjects, _, peak = held(lambda: read_subjects(path))
    assert subjects == {f"s{n}": "p" for n in range(500)}
    assert peak < len(whole) / 4


def test_results_of_many_texts_are_not_all_kept(monkeypatch) -> None:
    monkeypatch.setattr(text, "KEPT", 5)
    monkeypatch.setattr(text, "PART", 4)
    texts = [f"No effusion {n}. The heart is enlarged." for n in range(11)]
    once, calls = text.Once(), list[str]()
    for _ in range(2):
        assert once.each(lambda one: calls.append(one) or len(one), texts[:3]) == [len(one) for one in texts[:3]]
    others = [*reversed(texts)]
    parts = [*once.token_pairs(str.split, texts, others)]
    assert [len(ours) for ours, _ in parts] == [4, 4, 3]
    assert [row for ours, _ in parts for row in ours] == once.tokens(str.split, texts)
    for known in once._results.values():
        assert len(known) <= 5
    whole = text.bleu(texts, others)[4].statistics
    monkeypatch.setattr(text, "PART", 5_000)
    assert (whole == text.bleu(texts, others)[4].statistics).all()
    labels = read_labels("rule", texts, None, once)  # type: ignore[arg-type]
    assert len({id(one) for one in labels}) == 1, "equal labels are one object"
    assert alike(["a b", "a  b", " "]) == {"blank": 1 / 3, "equal": 2 / 3, "repeated": 2 / 3}
