"""README and docs: every command and block of code is run on tiny data, or checked and listed as needing more.

What cannot run here stands in the table of docs/examples.md. The notebook is run, too.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from PIL import Image

import raddraft
import raddraft.cli
from encoder.probe_config import SegmentConfig
from generator.config import DecodeConfig
from raddraft.cli import RENAMED_ACTIONS, list_actions
from raddraft.grammar import RENAMED
from raddraft.studies import read_studies, write_studies
from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = {"README.md": ROOT / "README.md"} | {path.name: path for path in sorted(DOCS.glob("*.md"))}
DEMO = """demo --count 40 --size 64 --tower-width 32 --tower-layers 1 --lm-width 32 --lm-layers 1 --train.workers 0
    --warm.epochs 1 --train.stages '[{"epochs": 1, "lm": "full"}]' --decode.max-new-tokens 12 --out"""
FILMS = "prepare phantom --count 2 --size 64 --dicoms 2 --processes 1 --root"
SMALLER = {
    "prepare phantom": "--count 6 --size 64 --processes 1",
    "prepare resize": "--processes 1",
    "train": "--train.stages.0.epochs 0.5 --train.workers 0",
    "pretrain": "--pretrain.steps 2 --pretrain.batch_size 8 --pretrain.micro_batch_size 8 --pretrain.workers 0"
    " --pretrain.watch [] --pretrain.map_images 0 --pretrain.calibrate false --pretrain.save_every 2",
    "clip": "--clip.epochs 1 --clip.batch_size 16 --clip.width 32 --clip.text_layers 1 --clip.workers 0",
    "generate": "--decode.max_new_tokens 8 --workers 0",
    "draft": "--decode.max_new_tokens 8",
    "compare": "--resamples 50 --workers 0",
    "features": "--workers 0",
    "probe": "--workers 0 --probe.resamples 50",
    "segment": "--workers 0 --resamples 50 --epochs 1",
}
"""Options that make a documented command quick, put after its own."""


@dataclass
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> list[str]:
    """The commands of a block, comments and continued lines taken out."""
    lines = re.sub(r"\\\n *", "", block.text).splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def needs() -> list[str]:
    """Patterns of the table in docs/examples.md, as for fnmatch."""
    rows = re.findall(r"^\| `(.+?)` \|", PAGES["examples.md"].read_text(encoding="utf-8"), re.MULTILINE)
    return [row.replace("…", "*").replace(" *", "*") for row in rows]


def is_listed(command: str) -> bool:
    return any(fnmatchcase(command.replace("'", ""), pattern) for pattern in needs())


ALL = [
    (block, command)
    for page in PAGES
    for block in blocks(page)
    if block.language == "sh"
    for command in commands(block)
]


def call(command: str, *extra: str) -> None:
    """Run a documented command in this process, in the working directory; fail with what it says."""
    words = shlex.split(command)
    environment = dict(word.split("=", 1) for word in words if re.match(r"[A-Z]+=", word))
    words = words[len(environment) :]
    if words[:2] == ["accelerate", "launch"]:
        words = ["raddraft", *words[words.index("raddraft") + 1 :]]
    package = "scripts"
    if words[:2] == ["python", "-m"]:
        package, _, name = words[2].partition(".")
        words = ["python", name or "__main__", *words[3:]]
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with pytest.raises(SystemExit) as end:
            raddraft.cli.run(words[1], [*words[2:], *extra], package)
    finally:
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert end.value.code in (0, None), f"{command}: {end.value.code}"


# ---- what can be told without running anything


@pytest.mark.parametrize(("block", "command"), ALL, ids=lambda one: one if isinstance(one, str) else one.page)
def test_every_command_exists_with_its_options(block: Block, command: str, tmp_path, monkeypatch, capsys) -> None:
    if command.startswith(("make ", "pip ")):
        target = command.split()[1]
        assert command.startswith("pip ") or f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
        return
    monkeypatch.chdir(tmp_path)
    write_configs(tmp_path, block.page)
    call(command, *([] if "--help" in command else ["--print-config"]))


def test_the_table_of_needs_lists_nothing_else() -> None:
    everything = [command.replace("'", "") for _, command in ALL]
    for pattern in needs():
        assert any(fnmatchcase(command, pattern) for command in everything), f"no command is like {pattern}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "commands/", "#")):
            continue
        path, _, anchor = target.partition("#")
        file = PAGES[page].parent / path
        assert file.exists(), f"{page}: {target}"
        titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        slugs = [re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles]
        assert not anchor or anchor in slugs, f"{page}: {target}, of {slugs}"


def test_readme_is_short_and_the_site_has_every_page() -> None:
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= 150
    assert (DOCS / "images" / "example.png").stat().st_size < 150_000
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"([\w/-]+\.md)", navigation))
    assert named == {path for path in PAGES if path != "README.md"} | {"commands/index.md"} | {
        f"commands/{action}.md" for action in list_actions()
    }


def test_docs_name_every_metric_api_and_rename() -> None:
    from metrics.scoring import METRICS

    scoring, api, changes = (
        path.read_text(encoding="utf-8") for path in (PAGES["scoring.md"], PAGES["api.md"], ROOT / "CHANGELOG.md")
    )
    for name in METRICS:
        stem = re.sub(r"_(plus|lower)$", "", name)
        stem = re.sub(r"_(macro|micro)_f1_(14|5)$", "", re.sub(r"_(e|er|bar_er|[1-4])$", "", stem))
        assert f"`{stem}" in scoring, name
    assert all(f"raddraft.{name}" in api for name in raddraft.__all__)
    renamed = dict(RENAMED)
    for action in list_actions():
        renamed |= getattr(import_module(f"scripts.{action}"), "RENAMED", {})
    for old, new in renamed.items():
        for word in {*old.split(".")} ^ {*new.split(".")}:
            assert re.search(rf"\b{re.escape(word)}\b", changes), f"{old} -> {new}"
    assert all(f"raddraft {old}" in changes for old in RENAMED_ACTIONS)


# ---- what is run


def write_configs(folder: Path, page: str) -> None:
    """The YAML blocks of a page that begin with `# NAME.yaml`."""
    for block in blocks(page):
        if block.language == "yaml" and (name := re.match(r"# (\S+\.yaml)\n", block.text)):
            (folder / name[1]).write_text(block.text, encoding="utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished demo, as small as can be, and the phantoms' DICOM files."""
    folder = tmp_path_factory.mktemp("docs")
    for line, name in ((DEMO, "demo"), (FILMS, "films")):
        action, *words = shlex.split(line)
        with pytest.raises(SystemExit) as end:
            raddraft.cli.run(action, [*words, str(folder / name)])
        assert end.value.code in (0, None), end.value.code
    return folder


@pytest.fixture
def workplace(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the examples run in: a demo, films, tables of drafts, reads."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(demo / "demo")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    first, second = sorted((demo / "films" / "dicom").iterdir())
    for name in ("film.dcm", "my-dicoms/film.dcm", "more-films/other.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(second if name.startswith("more") else first, tmp_path / name)
    raddraft.read_image(first).convert("RGB").save(tmp_path / "film.png")
    rows = [json.loads(line) for line in (demo / "demo" / "model.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, key in (("drafts", "prediction"), ("reports", "reference")):
        (tmp_path / f"{name}.txt").write_text("".join(f"{row[key]}\n" for row in rows), encoding="utf-8")
        with open(tmp_path / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["study_id", key], *([row["study_id"], row[key]] for row in rows)])
    with open(tmp_path / "table.csv", "w", encoding="utf-8", newline="") as file:
        keys = ("study_id", "prediction", "reference")
        csv.writer(file).writerows([keys, *([row[key] for key in keys] for row in rows)])
    with open(tmp_path / "reads.jsonl", "w", encoding="utf-8") as file:
        for row, decision in zip(rows, itertools.cycle(("accepted", "corrected", "rejected"))):
            texts = {"draft": row["prediction"], "final": row["reference" if decision == "corrected" else "prediction"]}
            ids = {key: row[key] for key in ("study_id", "subject_id")}
            file.write(json.dumps(ids | texts | {"decision": decision, "seconds": 30}) + "\n")
    (tmp_path / "my-images").mkdir()
    table = [("image", "patient_id", "findings")]
    for study in read_studies(demo / "demo" / "phantom" / "studies.jsonl"):
        shutil.copy(study.main_image.path, tmp_path / "my-images" / f"{study.study_id}.jpg")
        table.append((f"{study.study_id}.jpg", study.subject_id, study.sections["findings"]))
    with open(tmp_path / "my-images" / "reports.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(table)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RADDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]
)
def test_the_examples_of_a_page_run_in_their_order(page: str, workplace: Path, monkeypatch, capsys) -> None:
    write_configs(workplace, page)
    monkeypatch.setattr("generator.compare_measure.SegmentConfig", partial(SegmentConfig, epochs=1))
    short = partial(DecodeConfig, max_new_tokens=8)  # where nothing else is asked for
    for block in blocks(page):
        if block.language == "python":
            with monkeypatch.context() as patched:
                patched.setattr("generator.api.DecodeConfig", short)
                exec(compile(block.text, f"{page}:{block.line}", "exec"), {"__name__": "example"})
        for command in commands(block) if block.language == "sh" else []:
            if not is_listed(command):
                words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
                extra = SMALLER.get(words[1]) or SMALLER.get(" ".join(words[1:3]), "")
                if {"most-frequent", "nearest-report"} & {*words}:  # these decode nothing
                    extra = ""
                with monkeypatch.context() as patched:
                    if words[1] == "compare":  # whose report tasks have no option for it
                        patched.setattr("generator.api.DecodeConfig", short)
                    call(command, *extra.split(), *(["--folds", "3"] if "--folds" in words else []))


@pytest.mark.parametrize("page", PAGES)
def test_json_and_yaml_are_what_they_seem(page: str, tmp_path) -> None:
    for block in blocks(page):
        if block.language == "yaml":
            assert yaml.safe_load(block.text)
        if block.language == "json":
            row = json.loads(block.text)
            if "images" in row:
                (tmp_path / "studies.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
                (study,) = read_studies(tmp_path / "studies.jsonl")
                write_studies(tmp_path / "again.jsonl", [study])
                assert read_studies(tmp_path / "again.jsonl") == [study]


def test_the_corpus_and_the_metric_of_the_contributing_page_work(tmp_path) -> None:
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks("contributing.md"):
        if block.language == "python":
            exec(compile(block.text, f"contributing.md:{block.line}", "exec"), names)
    (tmp_path / "images").mkdir()
    rows = [("s1", "p1", "PA", "The lungs are clear."), ("s2", "p2", "AP", " "), ("s3", "p3", "PA", "No image.")]
    for name in ("s1", "s2"):
        Image.new("L", (8, 8)).save(tmp_path / "images" / f"{name}.png")
    with open(tmp_path / "table.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "patient", "view", "report"), *rows])
    names["convert"](tmp_path)  # type: ignore[operator]
    (study,) = read_studies(tmp_path / "studies.jsonl", check_images=True)
    assert (study.study_id, study.sections["findings"]) == ("s1", "The lungs are clear.")
    measure = names["family"].compute(["The lungs are clear."], ["Clear lungs."], None, None)["word_ratio"]  # type: ignore[attr-defined]
    assert measure.value == 2


def notebook_cells() -> Iterator[str]:
    notebook = json.loads((ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "committed without outputs"
            yield "".join(cell["source"])


def test_the_notebook_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {"__name__": "__main__"}
    fewer = {"count=120": "count=40", "epochs=12": "epochs=1", "max_new_tokens=80": "max_new_tokens=8"}
    for number, cell in enumerate(notebook_cells()):
        for many in [one for one in fewer if one in cell]:
            cell = cell.replace(many, fewer.pop(many))
        exec(compile(cell, f"cell {number}", "exec"), names)
    assert not fewer
    assert "rouge_l" in capsys.readouterr().out
