"""The whole way on a laptop, on synthetic chest phantoms: train, draft, score, with controls. No download, no GPU.

    raddraft demo
    raddraft demo --out runs/demo2 --count 500 --train.stages '[{"epochs": 2, "lm": "full", "tower": "full"}]'

Makes phantoms with matching reports, a tiny Dinov2 tower and a tiny Llama (random weights, a tokenizer trained on the
training reports), trains them together, drafts the test split, and scores the drafts beside three controls. What it
shows is that the machinery works; scores on phantoms say nothing about radiographs.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from generator.config import ModelConfig, TrainConfig
from generator.generate import DecodeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.grammar import CONFIGS
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies
from scripts import generate, score
from scripts import train as train_action

DEFAULT_CONFIG = CONFIGS / "demo.yaml"
CONTROLS = ("shuffled-images", "most-frequent", "nearest-report")


def main(
    train: TrainConfig,
    out: Path = Path("runs/demo"),
    count: int = 4000,
    size: int = 112,
    seed: int = 0,
    tower_width: int = 128,
    tower_layers: int = 4,
    lm_width: int = 128,
    lm_layers: int = 2,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008
) -> None:
    """Make phantoms, train a tiny model on them, draft the test split, and score it beside the controls.

    Args:
        train: How the loop runs.
        out: Folder for everything; started again, it goes on where it stopped.
        count: Number of synthetic studies.
        size: Side of their pictures in pixels.
        seed: Of the phantoms and of the random weights.
        tower_width: Hidden size of the tower, a multiple of 32.
        tower_layers: Blocks of the tower.
        lm_width: Hidden size of the language model, a multiple of 32.
        lm_layers: Blocks of the language model.
        prompt: What the model is told, and what it is to write.
        decode: How drafts are decoded.
    """
    from generator.corpora import phantom
    from generator.tiny import make_lm, make_tower

    if tower_width % 32 or lm_width % 32 or min(tower_width, lm_width) < 32:
        raise RadDraftError(f"tower_width {tower_width} and lm_width {lm_width} must be multiples of 32")
    started = time.monotonic()
    widths = {"tower_width": tower_width, "tower_layers": tower_layers, "lm_width": lm_width, "lm_layers": lm_layers}
    train_action.keep_config(out / "demo.yaml", {"count": count, "size": size, "seed": seed, **widths})
    manifest = out / "phantom" / "studies.jsonl"
    if not manifest.is_file():
        _say("prepare", "phantom", root=out / "phantom", count=count, size=size, seed=seed)
        phantom.generate(out / "phantom", count, size, seed)
    if not (out / "lm" / "model.safetensors").is_file():
        training = read_studies(manifest, "train")
        texts = [prompt.answer(study) or "" for study in training]
        contents = [prompt.messages(study)[0]["content"] for study in training]
        questions = [part["text"] for content in contents for part in content if part["type"] == "text"]
        make_tower(out / "tower", hidden=tower_width, layers=tower_layers, seed=seed)
        make_lm(out / "lm", texts + questions, hidden=lm_width, layers=lm_layers, seed=seed)
    if not (out / "model" / "raddraft.json").is_file():
        _say("train", config=out / "config.yaml", out=out)
        model = ModelConfig(str(out / "tower"), str(out / "lm"))
        train_action.main(manifest, out, model, prompt, train)
    files = []
    for control in ("none", *CONTROLS):
        files.append(out / f"{'model' if control == 'none' else control}.jsonl")
        _say("generate", model=out / "model", studies=manifest, control=control, out=files[-1])
        generate.main(str(out / "model"), manifest, files[-1], control=control, decode=decode)  # type: ignore[arg-type]
    # These need no weights, so that the demo prints the same table everywhere.
    metrics = ["rouge", "bleu", "rule"]
    _say("score", *files, metrics=metrics, studies=manifest, model_card=out / "model")
    score.main(files, studies=manifest, metrics=metrics, model_card=out / "model")
    print(f"\nThe demo took {(time.monotonic() - started) / 60:.1f} minutes. The data are synthetic.")


def _say(action: str, *values: object, **options: object) -> None:
    """Print the command that does the same by itself."""
    parts = ([f"--{key}", *(value if isinstance(value, list) else [value])] for key, value in options.items())
    words = [str(word) for part in ([*values], *parts) for word in part]
    print(f"\n$ raddraft {action} {shlex.join(words)}", flush=True)


if __name__ == "__main__":
    run("demo")
