"""A model that another program exported: does OpenVINO, or llama.cpp, write the same greedy texts?

    optimum-cli export openvino --model runs/first/model --task image-text-to-text --weight-format fp32 runs/openvino
    python convert_hf_to_gguf.py runs/first/model --outfile runs/lm.gguf --outtype f32

    python -m benchmarks.exported --model runs/first/model --studies studies.jsonl \\
        --openvino runs/openvino --optimum optimum-environment/bin/python
    python -m benchmarks.exported --model runs/first/model --studies studies.jsonl \\
        --gguf runs/lm.gguf --llama llama-environment/bin/python

The first command is optimum-intel's, the second llama.cpp's converter, in environments of their own. A GGUF file holds
the language model only: images go through this project's tower and projector, and llama.cpp, by llama-cpp-python, gets
their embeddings between the tokens of the prompt.

Printed is the share of texts that are those of `raddraft generate`, and of each one that differs the first token that
does and how far the logits of the two tokens are apart in this project's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.equal_texts import CONFIG, Asked, difference, generated, run_script
from generator.api import load_model
from generator.data import Example
from generator.decoding import end_tokens
from generator.drafter import Drafter
from generator.generate import spell
from raddraft.errors import RadDraftError
from raddraft.studies import Study, read_studies


def main(
    model: Path,
    studies: Path,
    n: int = 100,
    openvino: Path | None = None,
    optimum: Path | None = None,
    gguf: Path | None = None,
    llama: Path | None = None,
) -> int:
    """Print how many texts are equal; the exit status is 1 if a program fails.

    Args:
        model: Folder of a model.
        studies: The manifest; its test split is drafted.
        n: Studies.
        openvino: Folder that optimum-cli wrote.
        optimum: Python of an environment with optimum-intel[openvino].
        gguf: File that llama.cpp's converter wrote.
        llama: Python of an environment with llama-cpp-python and numpy.
    """
    if not (openvino and optimum) and not (gguf and llama):
        raise RadDraftError("Nothing to compare: give --openvino with --optimum, or --gguf with --llama")
    wanted = read_studies(studies, "test")[:n]
    drafter = load_model(model, "cpu")
    good = True
    with TemporaryDirectory() as temporary:
        expected = generated(drafter, wanted, Path(temporary))
        print(f"raddraft generate: {len(set(expected.values()))} different texts of {len(wanted)} studies", flush=True)
        programs: dict[str, Any] = {}
        if openvino and optimum:
            asked = Asked(drafter.drafter, openvino.resolve(), wanted, Path(temporary))
            programs["OpenVINO"] = lambda: asked.piped(optimum, "openvino_texts.py")
        if gguf and llama:
            programs["llama.cpp"] = lambda: of_llama(drafter.drafter, wanted, gguf, llama, Path(temporary))
        for name, write in programs.items():
            try:
                texts = write()
            except RadDraftError as error:
                print(f"{name} fails: {error}")
                good = False
                continue
            other = [study for study in wanted if texts[study.study_id] != expected[study.study_id]]
            print(f"{name}: {len(wanted) - len(other)} of {len(wanted)} texts are equal", flush=True)
            for study in other:
                print(difference(drafter.drafter, study, expected[study.study_id], texts[study.study_id]), flush=True)
    return 0 if good else 1


def of_llama(drafter: Drafter, studies: Sequence[Study], gguf: Path, python: Path, temporary: Path) -> dict[str, str]:
    """Study id -> text of llama.cpp, run by another Python; files are written to `temporary`."""
    examples = drafter.encode(studies, answers=False, reserve=CONFIG.max_new_tokens)
    np.savez(temporary / "prompts.npz", **make_prompts(drafter, examples))
    written = run_script(python, "llama_texts.py", gguf.resolve(), temporary / "prompts.npz", CONFIG.max_new_tokens)
    texts = spell(drafter.processor.tokenizer, written)
    return {study.study_id: text for study, text in zip(studies, texts, strict=True)}


@torch.inference_mode()
def make_prompts(drafter: Drafter, examples: Sequence[Example]) -> dict[str, Any]:
    """What `llama_texts` reads: the token ids of each prompt, below 0 for an image, and the embeddings for these."""
    model: Any = drafter.model
    dataset, given = drafter.dataset(examples), {"ends": np.array(sorted(end_tokens(model)))}
    for number, example in enumerate(examples):
        ids = np.array(example.prompt)
        given[f"ids{number}"] = np.where(ids == example.image_id, -1, ids)
        features = model.model.get_image_features(dataset[number].pixels, return_dict=True).pooler_output
        given[f"images{number}"] = torch.cat([*features]).float().numpy()  # [T, D] of all images
    return given


if __name__ == "__main__":
    from raddraft.cli import run

    run("exported", package="benchmarks")
