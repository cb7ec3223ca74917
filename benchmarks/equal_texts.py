"""One model folder, several programs, the same greedy texts? The demo's model and tiny ones of other families.

    python -m benchmarks.equal_texts --demo runs/demo
    python -m benchmarks.equal_texts --demo runs/demo --transformers other-environment/bin/transformers \\
        --vllm another-environment/bin/vllm

The studies are the first of the demo's test split, synthetic phantoms. `raddraft generate` is compared with `raddraft
serve`, with `transformers serve` and pipeline("image-text-to-text") in batches of the environment of `--transformers`
(which needs transformers[serving]; by default it is this one), and with vLLM's transformers backend in the environment
of `--vllm`. Models of other families have the demo's tower (or `--tower`) and tokenizer, and learn for some hundred
steps, so that texts differ from study to study; they are kept in `--out`.

Printed is the share of equal texts, and of each text that differs the first token that does and how far the logits of
the two tokens are apart in this project's model: rounding decides where it is small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.serving import serving
from generator.api import Model, load_model
from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.drafter import Drafter
from generator.engine import Engine
from generator.generate import decode_elsewhere, read_drafts
from generator.prompts import PromptConfig
from generator.train import train
from raddraft.errors import RadDraftError
from raddraft.images import load_image
from raddraft.studies import Study, read_studies
from raddraft.text import format_table

FAMILIES = ("Qwen3", "Gemma3")
CONFIG = DecodeConfig()
BATCH = 16
"""Of the pipeline, and requests at a time of servers."""
VLLM = ("--model-impl", "transformers", "--dtype", "float32", "--enforce-eager")


def main(
    demo: Path,
    out: Path = Path("runs/equal-texts"),
    n: int = 100,
    families: list[str] = list(FAMILIES),  # noqa: B006 - the parser's default, never changed
    tower: Path | None = None,
    training: int = 1000,
    transformers: Path | None = None,
    vllm: Path | None = None,
) -> int:
    """Print the table; the exit status is 1 if a text of `raddraft serve` differs or a program fails.

    Args:
        demo: Folder of `raddraft demo`.
        out: Folder for the models of other families.
        n: Studies.
        families: Language models beside the demo's: NAME of NAMEConfig and NAMEForCausalLM in transformers.
        tower: Folder of their tower; by default the demo's, a LeViT, which vLLM's CPU build cannot run.
        training: Studies that these learn from.
        transformers: The command `transformers` of another environment.
        vllm: The command `vllm` of another environment.
    """
    studies = read_studies(demo / "phantom" / "studies.jsonl")
    wanted = [study for study in studies if study.split == "test"][:n]
    learned = [study for study in studies if study.split == "train"][:training]
    folders = {"demo": demo / "model"} | {
        name: make_model(name, demo, tower or demo / "warm", learned, out) for name in families
    }
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB; by default vLLM takes a share of the machine's memory
    command = transformers or Path(sys.executable).with_name("transformers")
    rows: dict[str, list[str]] = {}
    told, good = [], True
    for family, folder in folders.items():
        model = load_model(folder, "cpu")
        with TemporaryDirectory() as temporary:
            expected = generated(model, wanted, Path(temporary))
            rows.setdefault("different texts of raddraft generate", []).append(str(len(set(expected.values()))))
            asked = Asked(model.drafter, folder.resolve(), wanted, Path(temporary))
            for name, write in asked.programs(command, vllm).items():
                try:
                    texts = write()
                except RadDraftError as error:
                    rows.setdefault(name, []).append("fails")
                    told.append(f"{family}, {name}: {error}")
                    good = False
                    continue
                other = [study for study in wanted if texts[study.study_id] != expected[study.study_id]]
                rows.setdefault(name, []).append(f"{len(wanted) - len(other)} of {len(wanted)}")
                print(f"{family}, {name}: {rows[name][-1]} equal", flush=True)
                for study in other:
                    both = expected[study.study_id], texts[study.study_id]
                    told.append(f"{family}, {name}, {difference(model.drafter, study, *both)}")
                good &= not (other and name == "raddraft serve")
    print(format_table([["", *folders], *([name, *cells] for name, cells in rows.items())]), *told, sep="\n")
    return 0 if good else 1


def make_model(family: str, demo: Path, tower: Path, studies: Sequence[Study], out: Path) -> Path:
    """Train a language model of a family with the demo's tokenizer; the folder of the model."""
    import transformers
    from transformers import AutoTokenizer

    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    if not hasattr(transformers, name) or not hasattr(transformers, f"{family}ForCausalLM"):
        raise RadDraftError(f"--families {family}: transformers has no {name} or no {family}ForCausalLM")
    folder = out / family
    if not (folder / "model" / "raddraft.json").is_file():
        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(demo / "lm")
        options: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        options |= {"intermediate_size": 512, "num_key_value_heads": 2, "head_dim": 32, "initializer_range": 0.09}
        options |= {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        config = getattr(transformers, name)(vocab_size=len(tokenizer), max_position_embeddings=1024, **options)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder / "lm")
        tokenizer.save_pretrained(folder / "lm")
        recipe = TrainConfig((Stage(epochs=4, lr=1e-3, lm="full"),), workers=0, eval_every=0, cached=True)
        parts = ModelConfig(str(tower), str(folder / "lm"))
        train({"train": studies}, folder, parts, PromptConfig(), recipe)
    return folder / "model"


def generated(model: Model, studies: Sequence[Study], folder: Path) -> dict[str, str]:
    """Study id -> text of `raddraft generate`."""
    model.generate(studies, folder / "expected.jsonl", workers=0, decode=CONFIG)
    return {draft.study_id: draft.text for draft in read_drafts(folder / "expected.jsonl")}


@dataclass
class Asked:
    """What is asked of every program."""

    drafter: Drafter
    folder: Path
    """Of the model."""
    studies: Sequence[Study]
    temporary: Path
    """Where files may be written."""

    def programs(self, command: Path, vllm: Path | None) -> dict[str, Callable[[], dict[str, str]]]:
        """Name -> what gives a program's text of each study.

        Args:
            command: `transformers`.
            vllm: `vllm`, if there is one.
        """
        path = str(self.folder)
        theirs: dict[str, Callable[[], dict[str, str]]] = {}
        theirs["raddraft serve"] = partial(
            self.served, [sys.executable, "-m", "raddraft", "serve", path], self.folder.name
        )
        elsewhere = command.parent.resolve() != Path(sys.executable).parent.resolve()
        if elsewhere or find_spec("fastapi"):
            serve = [str(command), "serve", path, "--host", "127.0.0.1"]
            theirs["transformers serve"] = partial(self.served, serve, path)
        python = command.with_name("python") if elsewhere else Path(sys.executable)
        theirs[f'pipeline("image-text-to-text"), batches of {BATCH}'] = partial(self.piped, python)
        if vllm:
            serve = [str(vllm), "serve", path, "--host", "127.0.0.1", *VLLM]
            theirs[f"vllm serve {' '.join(VLLM)}"] = partial(self.served, serve, path)
        return theirs

    def served(self, command: Sequence[str], model: str) -> dict[str, str]:
        """Study id -> text of a server that is started by a command and calls its model so."""
        with serving("the server", [*command, "--port", "{port}"], model, BATCH) as server:
            engine = Engine(f"http://127.0.0.1:{server.port}/v1", "token", model)
            examples = self.drafter.encode(self.studies, answers=False)
            config = replace(CONFIG, batch_size=BATCH)
            drafts = decode_elsewhere(engine, self.drafter, self.studies, examples, config)
            return {draft.study_id: draft.error or draft.text for draft in drafts}

    def piped(self, python: Path, script: str = "pipeline_texts.py") -> dict[str, str]:
        """Study id -> text of transformers' pipeline, or of what another script runs, by another Python."""
        chats: list[list[dict[str, Any]]] = []
        for study in self.studies:
            chat = self.drafter.prompt.messages(study)
            images = iter(self.drafter.prompt.choose_images(study))
            for number, part in enumerate(chat[0]["content"]):
                if part["type"] == "image":
                    part["image"] = str(self.temporary / f"{len(chats)}-{number}.png")
                    load_image(next(images).path, self.drafter.gray_mapping).save(part["image"])
            chats.append(chat)
        (self.temporary / "chats.json").write_text(json.dumps(chats), encoding="utf-8")
        texts = run_script(python, script, self.folder, self.temporary / "chats.json", CONFIG.max_new_tokens, BATCH)
        return {study.study_id: text for study, text in zip(self.studies, texts, strict=True)}


def run_script(python: Path, script: str, *arguments: Path | str | int) -> Any:
    """What a script of this folder prints last, as JSON, run by a Python; raises RadDraftError where it fails."""
    path = Path(__file__).with_name(script)
    words = [python, "-I", path, *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RadDraftError(f"{python} {path} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


@torch.inference_mode()
def difference(drafter: Drafter, study: Study, ours: str, theirs: str) -> str:
    """Where two texts part, and how far apart the logits of the two tokens are there."""
    tokenizer: Any = drafter.processor.tokenizer
    both = [[*ids, tokenizer.eos_token_id] for ids in drafter.tokens.of_texts([ours, theirs])]
    at, pair = next((at, pair) for at, pair in enumerate(zip_longest(*both)) if pair[0] != pair[1])
    words = [repr(tokenizer.decode([token])) if token is not None else "nothing" for token in pair]
    if None in pair:
        return f"{study.study_id}: token {at} is {words[0]} here and {words[1]} there"
    (example,) = drafter.encode([study], answers=False)
    dataset = drafter.dataset(())
    batch = dataset.collate([dataset[replace(example, answer=both[0][:at])]])
    model: Any = drafter.model
    names = ("input_ids", "attention_mask", "position_ids", "pixel_values")
    logits = model(**{name: batch[name] for name in names}).logits[0, -1]
    gap = float(logits[pair[0]] - logits[pair[1]])
    return f"{study.study_id}: token {at} is {words[0]} here and {words[1]} there; their logits are {gap:.2g} apart"


if __name__ == "__main__":
    from raddraft.cli import run

    run("equal_texts", package="benchmarks")
