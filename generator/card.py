"""The model card (README.md) of a trained model: recipe, data, how to load it, scores."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pprint import pformat
from typing import TYPE_CHECKING, Any

from metrics.report import LOWER_IS_BETTER
from metrics.summary import tell_doubts
from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl, write_text
from raddraft.studies import Study, StudyImage, skim

if TYPE_CHECKING:
    from generator.config import ModelConfig, RewardConfig, TrainConfig
    from generator.prompts import PromptConfig

CARD = "README.md"
BEGIN, END = "<!-- scores -->", "<!-- end of scores -->"
NO_SCORES = "None yet; `raddraft score DRAFTS --model-card FOLDER` writes them here."
TEMPLATE = Path(__file__).with_name("model_card.md.j2")
IMAGES = {
    "frontal": "a frontal chest X-ray",
    "pair": "a frontal and a lateral chest X-ray",
    "all": "the chest X-rays of a study",
}


def write_card(
    folder: Path,
    manifest: Path,
    studies: Mapping[str, Sequence[Study]],
    model: ModelConfig,
    prompt: PromptConfig,
    train: TrainConfig,
) -> None:
    """Write the card of a model that `generator.train.train` left in `folder`, beside the log of its run.

    Only the last parts of local paths are named. A card that exists is kept, with its scores and edits.

    Args:
        folder: the model folder.
        manifest: where the studies come from.
        studies: split -> studies given to the run.
        model, prompt, train: the recipe.
    """
    from huggingface_hub import ModelCard, ModelCardData

    from generator.model import read_sidecar
    from generator.portable import GREEDY, LOWEST_VERSION

    if (folder / CARD).is_file():
        return
    splits = ("train", "val") if train.eval_every != 0 else ("train",)
    used = [
        (study.split, _source(study), study.is_synthetic)
        for split in splits
        for study in skim(studies.get(split, ()))
        if prompt.answer(study) is not None
    ]
    synthetic = bool(used) and all(made for *_, made in used)
    counts = Counter((split, source) for split, source, _ in used)
    base_model = [name for name in map(_hub_id, (model.tower, model.lm, model.vlm)) if name]
    tags = ["radiology", "chest-x-ray", "report-generation", "raddraft", *(["synthetic-data"] if synthetic else [])]
    data = ModelCardData(
        library_name="transformers", pipeline_tag="image-text-to-text", tags=tags, base_model=base_model or None
    )
    sidecar = read_sidecar(folder) or {}
    card = ModelCard.from_template(
        data,
        str(TEMPLATE),
        model=model,
        prompt=prompt,
        train=train,
        images=IMAGES,
        texts=[*(["the previous study with its report"] if prompt.prior else []), *prompt.context],
        named=_named,
        synthetic=synthetic,
        validations=_validations(folder.parent / "log.jsonl"),
        rewarded=_rewarded(folder.parent / "log.jsonl", train),
        manifest=_plain("/".join(manifest.absolute().parts[-2:])),
        counts=dict(sorted(counts.items())),
        whole="tower" not in sidecar,
        own=sidecar.get("kind") != "chat",
        gray_mapping=sidecar.get("gray_mapping", "window"),
        lowest=LOWEST_VERSION,
        limit=GREEDY["max_new_tokens"],
        messages=_messages(prompt),
        follow_up=prompt.follow_up() if prompt.findings_first else None,
        scores=f"{BEGIN}\n{NO_SCORES}\n{END}",
    )
    write_text(folder / CARD, f"{card.content.strip()}\n")


def check_card(folder: Path) -> None:
    """Raise RadDraftError if the folder has no card, or one without the two lines between which scores stand."""
    _split(folder)


def add_scores(folder: Path, title: str, systems: Mapping[str, Mapping[str, Any]]) -> None:
    """Put scores into a model's card, in place of earlier ones.

    Args:
        folder: the model folder.
        title: what was scored.
        systems: name -> its part of scores.json; the first is the model, the others stand beside it.

    Raises:
        RadDraftError: as `check_card`.
    """
    before, after = _split(folder)
    first = next(iter(systems.values()))
    drawn = f"{first['subjects']} subjects" if "subjects" in first else "studies by themselves"
    lines = [f"{_plain(title)}: {first['n']} studies, 95 % intervals over {drawn}.", ""]
    lines += [f"| | {' | '.join(map(_plain, systems))} |", f"|---|{'---|' * len(systems)}"]
    signatures: dict[str, list[str]] = {}
    for metric, score in first["metrics"].items():
        cells = [_cell(one["metrics"].get(metric)) for one in systems.values()]
        lines.append(f"| `{_plain(metric)}` | {' | '.join(cells)} |")
        signatures.setdefault(score["signature"], []).append(f"`{_plain(metric)}`")
    lines += ["", "Signatures:", ""]
    lines += [f"- {', '.join(names)}: `{one.replace('<', '&lt;')}`" for one, names in signatures.items()]
    for warning in [*tell_doubts(systems), *first.get("warnings", [])]:
        lines += ["", f"Warning: {_plain(warning)}."]
    if first["skipped"]:
        lines += ["", f"Not measured: {', '.join(f'`{name}`' for name in first['skipped'])}."]
    write_text(folder / CARD, "\n".join([before + BEGIN, *lines, END + after]))


def _split(folder: Path) -> tuple[str, str]:
    """What stands in a card before and after its scores."""
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        what = f"has no lines {BEGIN} and {END}" if text else "is missing"
        raise RadDraftError(f"{path} {what}; `raddraft train` writes such a card with each model")
    return before, after


def _plain(text: str) -> str:
    """A name on one line that opens no tag or comment, such as the marks of the scores, and no cell of a table."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|")


def _cell(score: Mapping[str, float] | None) -> str:
    return "-" if score is None else f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _source(study: Study) -> str:
    return _plain(study.source or "not stated") + (" (synthetic)" if study.is_synthetic else "")


def _hub_id(name: str) -> str | None:
    """The hub id of a tower or language model; None for a local folder."""
    from encoder.cards import TOWERS

    if card := TOWERS.get(name):
        return card.hub_id
    return name if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) and not Path(name).is_dir() else None


def _named(name: str) -> str:
    if hub_id := _hub_id(name):
        return f"`{hub_id}`"
    return f"local folder `{Path(name).name}`" if "/" in name else f"`{name}`"


def _validations(log: Path) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
    """Each stage with the rows of its first and its lowest validation loss."""
    stages: dict[int, list[dict[str, Any]]] = {}
    for _, row in read_jsonl(log) if log.is_file() else ():  # a short run may have logged nothing
        if "val_loss" in row:
            stages.setdefault(row["stage"], []).append(row)
    return [(stage, rows[0], min(rows, key=lambda row: row["val_loss"])) for stage, rows in stages.items()]


def _rewarded(log: Path, train: TrainConfig) -> list[tuple[int, RewardConfig, list[float]]]:
    """Each reward stage with its settings, and the metric that chose its weights: at first, and of the weights kept."""
    found = []
    rows = [row for _, row in read_jsonl(log)] if log.is_file() else []
    for number, stage in enumerate(train.stages):
        if stage.reward:
            name = f"val_{stage.reward.select}"
            values = [row[name] for row in rows if row["stage"] == number and name in row]
            best = min if stage.reward.select in LOWER_IS_BETTER else max
            found.append((number, stage.reward, [values[0], best(values)] if values else []))
    return found


def _messages(prompt: PromptConfig) -> str:
    """The messages for a study with one image, as Python."""
    sections = {name: "…" for name in prompt.context if name != "view"}
    messages = prompt.messages(Study("", "", "test", [StudyImage(Path(), "PA")], sections))
    for part in messages[0]["content"]:
        if part["type"] == "image":
            part["path"] = "chest.png"
    return pformat(messages, width=112, sort_dicts=False)
