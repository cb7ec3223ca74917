"""The whole way on a laptop, on synthetic chest phantoms: train, draft, score, with controls. No download, no GPU.

    raddraft demo
    raddraft demo --out runs/demo2 --count 500 --train.stages.0.epochs 2

Makes phantoms with reports, a tiny LeViT tower and a tiny Llama from random weights, warms up the tower, trains the
Llama on its features, drafts the test split, and scores it beside three controls. Scores say nothing about radiographs.
"""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from pathlib import Path

from generator.config import DecodeConfig, ModelConfig, TinyConfig, TrainConfig, WarmUpConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.grammar import CONFIGS
from raddraft.ranges import Count, Whole

FLAT = ("tiny",)
DEFAULT_CONFIG = CONFIGS / "demo.yaml"
CONTROLS = ("shuffled-images", "most-frequent", "nearest-report")
METRICS = ["rouge", "bleu", "rule"]  # these need no weights, so the table is the same everywhere


def main(
    train: TrainConfig,
    out: Path = Path("runs/demo"),
    count: Count = 4000,
    size: Count = 112,
    seed: Whole = 0,
    tiny: TinyConfig = TinyConfig(),  # noqa: B008
    warm: WarmUpConfig = WarmUpConfig(),  # noqa: B008
    prompt: PromptConfig = PromptConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008
) -> None:
    """Make phantoms, train a tiny model on them, draft the test split, and score it beside the controls.

    Args:
        train: Training.
        out: Folder for everything; the same command again resumes.
        count: Number of synthetic studies.
        size: Side of their images in pixels.
        seed: Seed of the phantoms and of the random weights.
        tiny: Tiny model of random weights
        warm: Warm-up of the tower.
        prompt: Prompt.
        decode: Decoding.
    """
    from generator.api import load_model, report_drafts
    from generator.card import add_scores
    from generator.corpora import phantom
    from generator.generate import read_drafts
    from generator.train import run_training
    from generator.warm_up import make_parts
    from metrics.read import read_cut, read_systems
    from metrics.systems import score_systems
    from raddraft.runs import keep_config
    from raddraft.studies import read_studies

    started, folder, manifest = time.monotonic(), out / "model", out / "phantom" / "studies.jsonl"
    keep_config(out / "demo.yaml", {"count": count, "size": size, "seed": seed, **asdict(tiny), "warm": asdict(warm)})
    if not manifest.is_file():
        _say("prepare", "phantom", root=out / "phantom", count=count, size=size, seed=seed)
        phantom.convert(out / "phantom", count=count, size=size, seed=seed)
    studies = read_studies(manifest)
    training, wanted = ([study for study in studies if study.split == split] for split in ("train", "test"))
    if not (out / "warm" / "config.json").is_file():
        make_parts(out, training, prompt, tiny, warm, seed)
    if not (folder / "raddraft.json").is_file():
        _say("train", config=out / "config.yaml", out=out)
        print("model:", run_training(manifest, out, ModelConfig(str(out / "warm"), str(out / "lm")), prompt, train))
    drafter, files = load_model(folder), {name: out / f"{name}.jsonl" for name in ("model", *CONTROLS)}
    for control, file in zip(("none", *CONTROLS), files.values(), strict=True):
        decoding = decode if control in ("none", "shuffled-images") else DecodeConfig()
        changes = {key: value for key, value in asdict(decoding).items() if value != getattr(DecodeConfig, key)}
        options = {f"decode.{key}": value for key, value in changes.items()}
        _say("generate", model=folder, studies=manifest, control=control, out=file, **options)
        errors = drafter.generate(wanted, file, control, training, decode=decoding)  # type: ignore[arg-type]
        print(report_drafts(read_drafts(file), errors, file))
    _say("score", *files.values(), metrics=METRICS, studies=manifest, model_card=folder)
    systems, notes = read_systems([*files.values()])
    scored = score_systems(systems, METRICS, studies=studies, cut={one: read_cut(file) for one, file in files.items()})
    add_scores(folder, scored.title(), scored.by_system())
    print(*notes, scored.tables(), "", *scored.write(out / "scores", scored.title(), cases=36), sep="\n")
    print(f"\nThe demo took {(time.monotonic() - started) / 60:.1f} minutes. The data are synthetic.")


def _say(action: str, *values: object, **options: object) -> None:
    """Print the command that does the same by itself."""
    parts = ([f"--{key}", *(value if isinstance(value, list) else [value])] for key, value in options.items())
    words = [str(word) for part in ([*values], *parts) for word in part]
    print(f"\n$ raddraft {action} {shlex.join(words)}", flush=True)


if __name__ == "__main__":
    run("demo")
