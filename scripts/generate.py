"""Draft the reports of one split, or make the controls that stand beside them.

    raddraft generate --model runs/first/model --studies runs/demo/phantom/studies.jsonl --out runs/first/model.jsonl
    raddraft generate --model google/medgemma-4b-it --studies studies.jsonl --out medgemma.jsonl --prompt.context view
    raddraft generate --model runs/first/model --studies runs/demo/phantom/studies.jsonl --control shuffled-images \\
        --out runs/first/shuffled-images.jsonl
    raddraft generate --model runs/first/model --studies studies.jsonl --out eight.jsonl --decode.candidates 8
    raddraft generate --model runs/first/model --studies rexrank.jsonl --out submission.json --format rexrank
    raddraft generate --model runs/first/model --studies studies.jsonl --out vllm.jsonl --engine http://127.0.0.1:8000/v1

    accelerate launch --num_processes 8 -m raddraft generate --model runs/first/model --studies …

Several processes share the work and write one file. `raddraft consensus` chooses among candidates. The same command
again resumes an interrupted run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from generator.config import Control, DecodeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Whole


def main(
    model: str,
    studies: Path,
    out: Path,
    split: Literal["train", "val", "test"] = "test",
    control: Control = "none",
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    speculate: bool = False,
    sources: list[str] | None = None,
    device: str = "auto",
    workers: Whole = 2,
    remote_code: bool = False,
    format: Literal["predictions", "rexrank"] = "predictions",
    engine: str | None = None,
    check: Whole | None = None,
) -> int:
    """Draft every study of a split into a predictions.jsonl. All drafts are for a radiologist to check.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        studies: The manifest, studies.jsonl.
        out: The predictions.jsonl to write or to resume. With --format rexrank it has the suffix .jsonl, and the
            submission beside it .json, whichever is named here.
        split: The studies to draft.
        control: Instead of the model's drafts: its drafts for another subject's images, the most frequent training
            report for every study, or the training report with the nearest image.
        decode: Decoding. With an engine batch_size is the number of requests that are with it at a time.
        prompt: Prompt of a model that was not trained by RadDraft; one that was keeps its own.
        speculate: Propose tokens from the training reports of the manifest: the same greedy text in fewer passes.
        sources: Take only studies of these sources.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator, or with an engine the cpu.
        workers: Processes that read and prepare images; with an engine none, as the requests' own threads do it.
        remote_code: Run Python code that comes with a model that was not trained by RadDraft.
        format: rexrank also writes a submission to ReXrank (.json), of studies from `raddraft prepare rexrank`.
        engine: Address of a server of the same model that decodes (vLLM …); its token is in RADDRAFT_ENGINE_TOKEN.
        check: Studies that both draft first, by default 16; it stops if fewer than half of the greedy texts are equal.
    """
    from generator.api import load_model, report_drafts
    from generator.engine_check import compare_engine, connect
    from generator.generate import read_drafts
    from raddraft.processes import is_main_process
    from raddraft.rexrank import check_target, find_entries, write_submission
    from raddraft.studies import read_studies

    everything = [study for study in read_studies(studies) if sources is None or study.source in sources]
    wanted = [study for study in everything if study.split == split]
    training = [study for study in everything if study.split == "train"]
    if not wanted:
        raise RadDraftError(f"{studies}: no study in split {split!r}" + (f" of source {sources}" if sources else ""))
    entries = find_entries(wanted) if format == "rexrank" else {}
    out = out.with_suffix(".jsonl") if entries else out
    submission = out.with_suffix(".json")
    if studies.resolve() in map(Path.resolve, [out, submission] if entries else [out]):
        raise RadDraftError(f"--out {out}: this would replace the manifest {studies}; choose another name")
    if entries:
        check_target(submission)
    server, count = connect(engine, check)
    loaded = load_model(model, "cpu" if server and device == "auto" else device, prompt, remote_code)
    if server and count and is_main_process():  # others wait for it to begin
        print(compare_engine(server, loaded.drafter, wanted, decode, count), flush=True)
    errors = loaded.generate(wanted, out, control, training, speculate, workers, decode, server)
    if is_main_process():
        print(report_drafts(read_drafts(out), errors, out))
        if entries:
            texts = {draft.study_id: draft.text for draft in read_drafts(out)}
            print(*write_submission(submission, entries, texts), sep="\n")
    return 1 if errors and is_main_process() else 0


if __name__ == "__main__":
    run("generate")
