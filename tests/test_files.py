"""Whole files and folders, what kills leave, full disks; one writer at a time."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from encoder.convert import convert
from encoder.digests import FileList
from encoder.pretrain import pretrain
from encoder.recipe import PretrainConfig
from encoder.resize import resize_studies
from encoder.rows import Form, find_rows
from generator.api import load_model
from generator.cells import Cell, write_cell
from generator.clip import train_clip
from generator.config import ClipConfig, ModelConfig, TrainConfig
from generator.prompts import PromptConfig
from generator.train import train
from metrics import weights
from raddraft.errors import RadDraftError
from raddraft.files import (
    cut_log,
    parse_value,
    read_json,
    read_jsonl,
    read_object,
    remove_left,
    whole_folder,
    write_text,
    write_whole,
)
from raddraft.locks import HeldError, hold
from raddraft.runs import RunFolder, keep_config
from tests.launch import holder
from tests.test_cli import files_no_larger_than, run

ROOT = Path(__file__).parents[1]
WORKING = """
import time
from concurrent.futures import ProcessPoolExecutor
from raddraft.isolated import end_with_parent
with ProcessPoolExecutor(2, initializer=end_with_parent) as pool:
    list(pool.map(time.sleep, [0.01, 0.01]))
    print("working", flush=True)
    list(pool.map(time.sleep, [600, 600]))
"""
KILLED = """
import os, shutil, sys
from pathlib import Path
from raddraft import files
left = int(sys.argv[1])
def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if not left:
            os._exit(9)
        return function(*arguments, **options)
    return call
os.rename, os.replace, shutil.rmtree = map(dying, (os.rename, os.replace, shutil.rmtree))
if sys.argv[2] == "False":  # as where the file system cannot exchange two names
    files.ctypes.CDLL = lambda *_, **__: None
with files.whole_folder(Path(sys.argv[3])) as temporary:
    (temporary / "x.txt").write_text("new")
"""
"""Dies before one of the operations that move and remove files."""


FORKED = """
import os, time
from raddraft.locks import hold
with hold("out"):
    if os.fork():
        os.kill(os.getpid(), 9)
    print(os.getpid(), flush=True)
    time.sleep(30)
"""


def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# ---- whole files and folders


def fill(folder: Path, text: str) -> None:
    with whole_folder(folder) as temporary:
        (temporary / "x.txt").write_text(text)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_loses_neither_the_old_nor_the_new_folder(tmp_path, exchange) -> None:
    found = []
    for moment in range(1, 7):
        fill(tmp_path / "model", "old")
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(moment), str(exchange), tmp_path / "model"], cwd=ROOT
        )
        remove_left(tmp_path / "model")  # as the next run does
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        found.append((killed.returncode, (tmp_path / "model" / "x.txt").read_text()))
    assert {text for _, text in found} == {"old", "new"}
    assert found[0] == (9, "old")
    assert found[-1] == (0, "new")


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path) -> None:
    fill(tmp_path / "model", "old")
    os.rename(tmp_path / "model", tmp_path / f".model.{gone()}.old")
    remove_left(tmp_path)
    assert (tmp_path / "model" / "x.txt").read_text() == "old"


def test_links_are_followed(tmp_path) -> None:
    write_text(tmp_path / "far" / "x.txt", "old")
    fill(tmp_path / "far" / "model", "old")
    (tmp_path / "x.txt").symlink_to(tmp_path / "far" / "x.txt")
    (tmp_path / "model").symlink_to(tmp_path / "far" / "model")
    write_text(tmp_path / "x.txt", "new")
    fill(tmp_path / "model", "new")
    assert (tmp_path / "x.txt").is_symlink()
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "far" / "x.txt").read_text() == (tmp_path / "far" / "model" / "x.txt").read_text() == "new"


def test_weights_have_the_mode_of_other_files(tmp_path) -> None:
    write_text(tmp_path / "x.txt", "")
    with write_whole(tmp_path / "x.safetensors") as temporary:
        save_file({"w": torch.zeros(2)}, temporary)
    with whole_folder(tmp_path / "model") as folder:
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    wanted = stat.S_IMODE((tmp_path / "x.txt").stat().st_mode)
    for path in (tmp_path / "x.safetensors", tmp_path / "model" / "model.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == wanted


# ---- full disks


def big_tensors(path: Path) -> None:
    save_file({"w": torch.zeros(10_000)}, path)


def big_state(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"w": torch.zeros(10_000)}, file)


@pytest.mark.parametrize("write", [big_tensors, big_state, lambda path: path.write_bytes(bytes(9999))])
def test_a_full_disk_is_said_to_be_full_whatever_library_writes(tmp_path, write) -> None:
    (tmp_path / "x").write_text("last good state")
    with (
        files_no_larger_than(5000),
        pytest.raises(OSError, match=r"File too large: .*/x'") as error,
        write_whole(tmp_path / "x") as temporary,
    ):
        write(temporary)
    assert error.value.filename == str(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "last good state"


def test_other_errors_stay_what_they_are(tmp_path) -> None:
    with pytest.raises(KeyError), write_whole(tmp_path / "x"):
        raise KeyError("no disk")
    with pytest.raises(FileNotFoundError) as error, write_whole(tmp_path / "x"):
        pass  # nothing was written
    assert error.value.filename == str(tmp_path / "x")


# ---- damaged files


@pytest.mark.parametrize(
    "line",
    [b'{"a": 1, "b": {"c": 1, "c": 2}}', b'{"a": NaN, "c": 1, "c": 2}', b'{"c" : 1, "c" : 2}', b'[{"c":1,"c":1}]'],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, line) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(RadDraftError, match=r"x\.jsonl line 2: the key 'c' stands twice in an object"):
        list(read_jsonl(tmp_path / "x.jsonl"))
    (tmp_path / "x.json").write_bytes(line)
    with pytest.raises(RadDraftError, match=r"x\.json: the key 'c' stands twice in an object"):
        read_json(tmp_path / "x.json")


def test_texts_may_look_like_keys(tmp_path) -> None:
    row = {"a": 'Said "clear": no edema. "a": 2', "b": [{"a": 1}, {"a": 2}]}
    (tmp_path / "x.json").write_text(json.dumps(row))
    assert read_json(tmp_path / "x.json") == row


@pytest.mark.parametrize(
    ("line", "why"),
    [(b"[" * 100_000, "Nested too deeply"), (b'{"a": ' * 9_999, "Nested too deeply"), (b"1" * 5000, "too many digits")],
)
def test_json_that_python_cannot_hold_is_no_json(tmp_path, line, why) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(RadDraftError, match=rf"x\.jsonl line 2: not valid JSON: .*{why}"):
        list(read_jsonl(tmp_path / "x.jsonl"))
    (tmp_path / "x.json").write_bytes(line)
    with pytest.raises(RadDraftError, match=rf"x\.json: not valid JSON: .*{why}"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("damage", [b"", b"\0\0\0\0", b"{", b"[1]", b"{}", b'{"b": 1}', b"\xff\xfe"])
def test_state_that_is_damaged_is_named_with_a_way_out(tmp_path, damage) -> None:
    (tmp_path / "x.json").write_bytes(damage)
    with pytest.raises(RadDraftError, match=r"x\.json: .*; remove it$"):
        read_object(tmp_path / "x.json", "remove it", ("a",))
    with pytest.raises(RadDraftError, match=r"x line 3 is damaged: .*; remove it$"):
        parse_value(damage, "x line 3", str, "remove it")


@pytest.mark.parametrize("damaged", [lambda data: data[:-4], lambda data: data[:-4] + bytes(4)])
def test_weights_of_a_run_that_are_damaged_are_named_with_a_way_out(tmp_path, damaged) -> None:
    """Also where a copy ends in zeros, which safetensors does not notice."""
    run = RunFolder(tmp_path, Accelerator())
    model = torch.nn.Linear(2, 2)
    run.save_best(model.named_parameters())
    run.save("step-1", model.named_parameters(), {})
    run.load_best(model)
    run.restore(model)
    for file in (tmp_path / "checkpoints").rglob("*.safetensors"):
        file.write_bytes(damaged(file.read_bytes()))
    with pytest.raises(
        RadDraftError, match=r"checkpoints/best\.safetensors is damaged \(.*remove .*checkpoints to start"
    ):
        run.load_best(model)
    with pytest.raises(RadDraftError, match=r"step-1/weights\.safetensors is damaged \(.*remove .*step-1 to start"):
        run.restore(model)


def test_a_damaged_state_of_an_optimizer_is_named(tmp_path) -> None:
    run, model = RunFolder(tmp_path, Accelerator()), torch.nn.Linear(50, 50)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 50)).sum().backward()
    optimizer.step()
    run.save("step-1", model.named_parameters(), {}, optimizer)
    run.restore(model, optimizer)
    moments = optimizer.state[model.weight]["exp_avg"].numpy().tobytes()
    file = tmp_path / "checkpoints" / "step-1" / "state.pt"
    data = file.read_bytes()
    assert moments in data
    file.write_bytes(data.replace(moments, bytes(len(moments))))  # as long, and torch does not notice
    with pytest.raises(RadDraftError, match=r"state\.pt is damaged \(wrong check sum of .*remove .*step-1 to start"):
        run.restore(model, optimizer)


@pytest.mark.parametrize("damage", [{"prompt": "x"}, {"prompt": {"targets": 5}}, {"prompt": {"images": "x"}}, {}])
def test_a_sidecar_that_is_damaged_is_named(model_folder, tmp_path, damage) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model_folder, copy)
    (copy / "raddraft.json").write_text(json.dumps({"kind": "llava", "gray_mapping": "window", **damage}))
    with pytest.raises(RadDraftError, match=r"model.*(its prompt is damaged|'prompt' is missing)"):
        load_model(copy, "cpu")


def test_a_processor_that_is_damaged_is_named(model_folder, tmp_path) -> None:
    """transformers raises an AttributeError of it."""
    shutil.copytree(model_folder, tmp_path / "model")
    config = tmp_path / "model" / "processor_config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps({"image_processor": "x"}))
    with pytest.raises(RadDraftError, match=r"The model .*model cannot be loaded: "):
        load_model(tmp_path / "model", "cpu")
    config.write_text(json.dumps(whole | {"image_processor": whole["image_processor"] | {"image_mean": ["x"] * 3}}))
    with pytest.raises(RadDraftError, match=r"The processor and the tower in .*model do not read an image: "):
        load_model(tmp_path / "model", "cpu")


def test_a_log_that_is_damaged_before_its_last_line_is_not_cut(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 3}\n')
    with pytest.raises(RadDraftError, match=r"log\.jsonl line 2: not valid JSON"):
        cut_log(tmp_path / "log.jsonl", lambda row: True)
    assert len((tmp_path / "log.jsonl").read_bytes().splitlines()) == 3
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n{"step": 2}\n{"st')
    cut_log(tmp_path / "log.jsonl", lambda row: row["step"] < 2)
    assert (tmp_path / "log.jsonl").read_bytes() == b'{"step": 1}\n'


def test_damaged_state_of_a_run_and_of_features_is_named(tmp_path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"a: [")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(RadDraftError, match=r"config\.yaml is damaged .* choose another --out, or remove the file"):
        keep_config(tmp_path / "config.yaml", {"a": 1})
    (tmp_path / "config.yaml").write_text("a: 1\nb:")
    with pytest.raises(RadDraftError, match=r"config\.yaml lacks c\.d: it is damaged, or of an earlier version"):
        keep_config(tmp_path / "config.yaml", {"a": 1, "b": None, "c": {"d": 2}})
    (tmp_path / "config.yaml").write_text("b:\nc: {d: 2}\n")
    with pytest.raises(RadDraftError, match=r"another config: b was None, now 3"):
        keep_config(tmp_path / "config.yaml", {"b": 3, "c": {"d": 2}})
    keep_config(tmp_path / "config.yaml", {"b": None, "c": {"d": 2, "new": None}})
    (tmp_path / "part-0.jsonl").write_bytes(b'"digest"\n[]\n')
    (tmp_path / "part-0.bin").write_bytes(bytes(2 * Form(0, 4, "float32").row_bytes))
    with pytest.raises(RadDraftError, match=r"part-0\.jsonl line 2 is damaged: .* made again"):
        find_rows(tmp_path, Form(0, 4, "float32"))
    (tmp_path / "files.jsonl").write_bytes(b'["x", 1, 2, 3, 4, "digest"]\n{"x": \n')
    with pytest.raises(RadDraftError, match=r"files\.jsonl line 2 is damaged: .* made again"):
        FileList(tmp_path).find(["x"])


# ---- what kills leave


def test_the_next_run_removes_what_a_killed_one_left(tmp_path) -> None:
    pid = gone()
    out = tmp_path / "run"
    (out / "checkpoints" / f".step-1.{pid}.tmp").mkdir(parents=True)
    (out / "checkpoints" / f".best.safetensors.{pid}.tmp").touch()
    (tmp_path / f".run.{pid}.tmp").touch()
    kept = [out / "x.tmp", out / ".x.tmp", out / f".x.{os.getpid()}.tmp", tmp_path / f".other.{pid}.tmp"]
    for path in kept:
        path.touch()
    with hold(out):
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([*kept, tmp_path / ".run.lock"])
        assert list((out / "checkpoints").iterdir()) == []


def test_workers_end_with_a_killed_parent() -> None:
    process = subprocess.Popen([sys.executable, "-c", WORKING], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.kill()
    started = time.monotonic()
    process.stdout.read()  # ends when the last process that can write to it has ended
    assert time.monotonic() - started < 300
    process.wait()


# ---- one writer at a time


@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "link"])
def test_a_second_process_says_who_holds_the_output(tmp_path, kind) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.touch()
    elif kind == "folder":
        out.mkdir()
    elif kind == "link":
        (tmp_path / "far").mkdir()
        out.symlink_to(tmp_path / "far")
    process = holder(out)
    try:
        with pytest.raises(
            HeldError, match=rf"process {process.pid} on .* writes to it; wait .* choose another output"
        ):
            hold(out).__enter__()
        with hold(tmp_path / "another"):
            pass
    finally:
        process.kill()
        process.wait()
    with hold(out), hold(out):  # goes with the process
        assert len(list(tmp_path.glob(".*.lock"))) == 1
    assert list(tmp_path.glob(".*.lock")) == []


def test_a_lock_of_a_killed_parent_does_not_stay_with_its_workers(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.wait()
    with hold(tmp_path / "out"):
        os.kill(worker, 9)


def test_where_nothing_can_be_written_beside_a_folder_its_lock_is_in_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with hold(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_of_processes_launched_together_the_first_holds_the_lock(tmp_path, monkeypatch) -> None:
    process = holder(tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    with hold(tmp_path / "out"):
        process.kill()
    process.wait()


def test_functions_that_write_a_folder_hold_it_as_the_commands_do(tmp_path) -> None:
    out = tmp_path / "out"
    process = holder(out)
    for write, arguments in (
        (pretrain, ([], [], out, PretrainConfig())),
        (train_clip, ({}, out, None, ClipConfig())),
        (train, ({}, out, ModelConfig(vlm="x"), PromptConfig(), TrainConfig())),
        (resize_studies, (out / "studies.jsonl", out)),
        (convert, (out / "x.pth", out)),
    ):
        with pytest.raises(HeldError):
            write(*arguments)
    process.kill()
    process.wait()


def test_what_kills_left_of_weights_and_of_cells_goes_with_the_next_run(lm_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path))
    for left in (".chexbert-tokenizer", ".cell.json"):
        (tmp_path / f"{left}.{gone()}.tmp").mkdir()
    weights.add("chexbert-tokenizer", lm_folder)
    write_cell(tmp_path / "cell.json", Cell(0.5), "digest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.json", "chexbert-tokenizer"]


def test_a_second_command_stops(random_model, studies_file) -> None:
    out = studies_file.parent / "drafts.jsonl"
    process = holder(out)
    try:
        status, sentence = run("generate", "--model", random_model, "--studies", studies_file, "--out", out)
    finally:
        process.kill()
        process.wait()
    assert status == 1
    assert sentence.startswith(f"raddraft generate: {out}: process {process.pid} on ")
    assert not out.exists()
    assert run("generate", "--model", random_model, "--studies", studies_file, "--out", out)[0] == 0


def test_a_changed_number_in_a_checkpoints_progress_is_named(tmp_path) -> None:
    run, model = RunFolder(tmp_path, Accelerator()), torch.nn.Linear(5, 5)
    progress = {"stage": 0, "step": 12, "best": float("nan"), "when": (1, 2.5), "none": None}
    run.save("step-1", model.named_parameters(), progress)
    assert run.read_progress() == {"stage": 0, "step": 12, "best": None, "when": [1, 2.5], "none": None}
    file = tmp_path / "checkpoints" / "step-1" / "progress.json"
    whole = file.read_text()
    file.write_text(whole.replace("12", "13"))
    with pytest.raises(RadDraftError, match=r"progress\.json: wrong check sum; remove .*step-1 to start the run"):
        run.read_progress()
    content = json.loads(whole)
    del content["check_sum"]  # of an earlier version
    file.write_text(json.dumps(content))
    assert run.read_progress()["step"] == 12


@pytest.mark.parametrize("row", ['{"stage": []}', "{}"])
def test_a_row_of_a_log_that_tells_no_step_is_named(tmp_path, row) -> None:
    (tmp_path / "log.jsonl").write_text('{"stage": 1}\n' + row + "\n")
    with pytest.raises(RadDraftError, match=r"log\.jsonl line 2 is damaged .*; remove the line"):
        cut_log(tmp_path / "log.jsonl", lambda row: row["stage"] <= 3)
