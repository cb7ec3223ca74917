"""How much of a finding, or of a patient's data, can be read off the features of one frozen tower.

    raddraft probe --tower rad-dino --studies studies.jsonl --kind multilabel --targets Cardiomegaly Edema
    raddraft probe --tower pixels --studies runs/demo/phantom/studies.jsonl --kind multiclass --targets patient.sex
    raddraft probe --features features/0f3c… --studies studies.jsonl --kind regression --targets patient.age
    raddraft probe --tower rad-dino --studies studies.jsonl --kind binary --targets Pneumonia --blocks 2 \\
        --probe.solver adamw --probe.weight_decays [0.01] --probe.epochs 10

Fitted on train, chosen on val, measured on test. Many towers on many tasks: `raddraft compare`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoder.fitting import ProbeConfig
from encoder.targets import TargetSpec, check_leaks, make_target
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.processes import pick_device
from raddraft.studies import GrayMapping, read_studies

if TYPE_CHECKING:
    from encoder.fitting import ProbeResult
    from encoder.probe import CurvePoint


def main(
    studies: Path,
    targets: list[str],
    kind: Literal["multilabel", "binary", "multiclass", "regression"] = "multilabel",
    tower: str | None = None,
    features: Path = Path("features"),
    out: Path = Path("probe.json"),
    probe: ProbeConfig = ProbeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    uncertain: Literal["drop", "positive", "negative"] = "drop",
    missing: Literal["drop", "negative"] = "drop",
    images: Literal["main", "frontal"] = "main",
    sources: list[str] | None = None,
    fractions: list[float] | None = None,
    blocks: int = 0,
    seen: Path | None = None,
    image_size: int | None = None,
    gray_mapping: GrayMapping = "window",
    batch_size: int = 32,
    workers: int = 2,
    device: str = "auto",
) -> None:
    """Print a table of the measures on test, with 95 % intervals by subject, and write all of it as JSON.

    Args:
        studies: The manifest.
        targets: Findings; else fields: patient.sex, patient.age, image.view, source, or another key, dots going deeper.
        kind: Findings (multilabel, binary), a field of few values (multiclass), fields that are numbers (regression).
        tower: Short name, hub id, folder, pixels, or random:NAME.
        features: Folder of feature stores; without a tower, one store in it, as `raddraft features` names it.
        out: File to write.
        probe: How the probe is fitted and measured.
        uncertain: What a label of -1 counts as.
        missing: What a finding that is not mentioned counts as.
        images: Each study's main image, or all of its frontal ones.
        sources: Studies of these sources only (the manifest's key `source`).
        fractions: Learning curve as well: parts of the train subjects, e.g. 0.1 0.3 1; three random draws of each.
        blocks: Fine-tune this many of the tower's last blocks together with the probe, instead of stored features.
        seen: List of SHA-256 of the tower's pre-training images, one a line: test images among them earn a warning.
        image_size: Side of the tower's input in pixels instead of its own.
        gray_mapping: How grey values are mapped to 8 bits.
        batch_size: Images per forward pass.
        workers: Processes that decode and prepare images while the tower runs.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
    """
    from scripts.compare import of_sources

    if blocks and (tower is None or fractions):
        raise RadDraftError("blocks are fine-tuned in a tower that is named, and without a learning curve")
    known = of_sources(read_studies(studies), sources)
    target = make_target(known, TargetSpec(kind, tuple(targets), uncertain, missing, images))
    points: list[CurvePoint] = []
    if blocks:
        from encoder.finetune import finetune
        from encoder.towers import load_tower

        loaded = load_tower(tower or "", image_size)
        loaded.model.to(pick_device(device))
        result = finetune(loaded, blocks, target, probe, gray_mapping)
    else:
        from encoder.probe import learning_curve, run_probe

        store = _open(target.paths, tower, features, probe, image_size, gray_mapping, batch_size, workers, device)
        result = run_probe(store, target, probe)
        points = learning_curve(store, target, fractions, probe) if fractions else []
    warnings = check_leaks(known, seen, features if tower else features.parent)
    _print(result, warnings)
    curve = _print_curve(points)
    row = {"tower": tower or str(features), "targets": targets, "blocks": blocks, "warnings": warnings, "curve": curve}
    with write_whole(out) as temporary:
        temporary.write_text(json.dumps(row | result.to_dict(), indent=2, default=str) + "\n", encoding="utf-8")
    print(f"numbers: {out}")


def _open(
    paths: Sequence[Path],
    tower: str | None,
    features: Path,
    probe: ProbeConfig,
    image_size: int | None,
    gray_mapping: Any,
    batch_size: int,
    workers: int,
    device: str,
) -> Any:
    """The store of a tower's features, computed as far as they are missing; or the store named."""
    from encoder.features import FeatureConfig, open_features, store_features
    from encoder.towers import load_tower

    if tower is None:
        return open_features(features, paths)
    config = FeatureConfig("grid" if probe.pooling == "attention" else "pooled", gray_mapping=gray_mapping)
    loaded = load_tower(tower, image_size)
    loaded.model.to(pick_device(device))
    store, errors = store_features(loaded, paths, features, config, batch_size, workers)
    for sentence in errors:
        print(f"no features: {sentence}")
    return store


def _print(result: ProbeResult, warnings: Sequence[str]) -> None:
    from raddraft.text import format_table, show

    kinds = list(result.measures["macro"])
    several = result.config.solver == "adamw" and len(result.config.seeds) > 1
    rows = []
    for name, row in result.measures.items():
        one = next(iter(row.values())).estimate
        cells = [show(row[kind].estimate) if kind in row else "-" for kind in kinds]
        if several:
            cells = [
                f"{cell} ± {row[kind].estimate.sd:.3f}" if kind in row and row[kind].estimate.sd is not None else cell
                for kind, cell in zip(kinds, cells, strict=True)
            ]
        rows.append([name, str(one.n), "" if one.n_positive is None else str(one.n_positive), *cells])
    print(format_table([["", "n", "positive", *kinds], *(rows)]))
    counts = ", ".join(f"{split} {count}" for split, count in result.n.items())
    decay = "" if result.weight_decay is None else f"; weight decay {result.weight_decay:g}, chosen on val"
    print(f"images: {counts}{decay}; {result.seconds:.1f} s")
    print("brackets: 95 % interval, subjects resampled" + ("; ±: standard deviation over seeds" if several else ""))
    for sentence in result.notes:
        print(f"note: {sentence}")
    for sentence in warnings:
        print(f"warning: {sentence}")


def _print_curve(points: Sequence[CurvePoint]) -> dict[str, list[dict[str, Any]]]:
    """Print the learning curve by the first measure, and return it by every measure."""
    from scripts.compare import curve_point

    if not points:
        return {}
    fractions = sorted({point.fraction for point in points})
    measures = points[0].result.measures["macro"]
    curve = {name: [curve_point(points, fraction, name) for fraction in fractions] for name in measures}
    first = next(iter(curve))
    for one in curve[first]:
        value = "undefined" if one["value"] is None else f"{one['value']:.3f}"
        print(f"{one['fraction']:g} of train, {one['n']} subjects: macro {first} {value}")
    return curve


if __name__ == "__main__":
    run("probe")
