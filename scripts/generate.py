"""Draft the reports of one split, or make the controls that stand beside them.

    raddraft generate --model runs/first/model --studies runs/demo/phantom/studies.jsonl --out runs/first/model.jsonl
    raddraft generate --model google/medgemma-4b-it --studies mimic/studies.jsonl --out medgemma.jsonl \\
        --prompt.context '[indication]'
    raddraft generate --model runs/first/model --studies runs/demo/phantom/studies.jsonl --control shuffled-images \\
        --out runs/first/shuffled-images.jsonl
    raddraft generate --model runs/first/model --studies runs/demo/phantom/studies.jsonl --out runs/first/eight.jsonl \\
        --decode.candidates 8

    accelerate launch --num_processes 8 -m scripts.generate --model runs/first/model --studies …

Several processes share the work and write one file. Several candidates of each study are for `raddraft consensus` to
choose among. Starting the same command again goes on where it stopped.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from generator.generate import DecodeConfig, generate
from generator.priors import find_priors
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.processes import pick_device
from raddraft.studies import Study, read_studies

if TYPE_CHECKING:
    from generator.model import Drafter


def main(
    model: str,
    studies: Path,
    out: Path,
    split: Literal["train", "val", "test"] = "test",
    control: Literal["none", "shuffled-images", "most-frequent", "nearest-report"] = "none",
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    speculate: bool = False,
    sources: list[str] | None = None,
    device: str = "auto",
    workers: int = 2,
    remote_code: bool = False,
) -> int:
    """Draft every study of a split into a predictions.jsonl. All drafts are for a radiologist to check.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        studies: The manifest, studies.jsonl.
        out: The predictions.jsonl to write, or to go on with.
        split: The studies to draft.
        control: Instead of the model's drafts: those it writes for somebody else's pictures, the commonest training
            report for everyone, or the training report with the nearest image.
        decode: How text is decoded.
        prompt: What a model that was not trained here is asked; one that was keeps its own prompt.
        speculate: Propose tokens from the training reports of the manifest and let the model check several at a time:
            the same greedy text in fewer passes.
        sources: Take only studies of these sources.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        workers: Processes that decode and prepare images.
        remote_code: Whether Python code that comes with a model from elsewhere may run.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs, gather_object

    from generator.controls import most_frequent, nearest_reports, shuffle_images
    from generator.generate import merge
    from generator.speculate import Speculator, index_reports
    from generator.vlm import load_any
    from raddraft.processes import WAIT

    everything = [study for study in read_studies(studies) if sources is None or study.source in sources]
    wanted = [study for study in everything if study.split == split]
    training = [study for study in everything if study.split == "train"]
    if not wanted:
        raise RadDraftError(f"{studies}: no study in split {split!r}" + (f" of source {sources}" if sources else ""))
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)])
    where = pick_device(device) if accelerator.num_processes == 1 else str(accelerator.device)
    drafter = load_any(model, device=where, prompt=chosen(prompt), remote_code=remote_code)
    if drafter.prompt.prior and not find_priors(wanted):
        warnings.warn("the model also reads the subject's study before, and no study here has one", stacklevel=2)
    name = model_name(model, prompt) if control == "none" else f"{model_name(model, prompt)} {control}"
    errors: list[str] = []
    if control in ("most-frequent", "nearest-report") and not accelerator.is_main_process:
        return 0
    if control == "most-frequent":
        text = most_frequent(drafter, training)
        _write(out, drafter, wanted, {study.study_id: text for study in wanted}, name)
    elif control == "nearest-report":
        reports, errors = nearest_reports(drafter, training, wanted, out.parent / "features")
        _write(out, drafter, wanted, reports, name)
    else:
        if control == "shuffled-images":
            wanted = shuffle_images(wanted)
        speculator = Speculator(index_reports(drafter, training)) if speculate else None
        process = (accelerator.process_index, accelerator.num_processes)
        if accelerator.is_main_process:  # what a killed run of several processes has left
            merge(out, wanted)
        accelerator.wait_for_everyone()
        errors = gather_object(generate(drafter, wanted, out, decode, name, workers, speculator, process))
        if not accelerator.is_main_process:
            return 0
        merge(out, wanted)
    return report_errors(errors, len(wanted), out)


def report_errors(errors: list[str], n_studies: int, out: Path) -> int:
    """Say what was written and name every study without a draft; return the exit status."""
    print(f"{n_studies - len(errors)} of {n_studies} drafts are in {out}")
    for sentence in errors:
        print(f"no draft: {sentence}")
    return 1 if errors else 0


def model_name(model: str, prompt: PromptConfig) -> str:
    """What to call a model in its predictions: its name, and what was said about the prompt."""
    changes = [field for field in fields(prompt) if getattr(prompt, field.name) != getattr(PromptConfig(), field.name)]
    return " ".join([str(Path(model)), *(f"{field.name}={getattr(prompt, field.name)!r}" for field in changes)])


def chosen(prompt: PromptConfig) -> PromptConfig | None:
    """The prompt, or None where nothing was said about it."""
    return None if prompt == PromptConfig() else prompt


def _write(out: Path, drafter: Drafter, studies: list[Study], reports: dict[str, str], name: str) -> None:
    """Write reports that were not decoded, in the form of predictions."""
    with write_whole(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for study in studies:
            if study.study_id in reports:
                reference = drafter.prompt.answer(study)
                row = {"study_id": study.study_id, "prediction": reports[study.study_id], "reference": reference}
                file.write(json.dumps(row | {"model": name}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    run("generate")
