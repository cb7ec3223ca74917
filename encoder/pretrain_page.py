"""The page of a run of pre-training, OUT/report.html: made of what lies in the run folder, at any time of the run.

write_page(Path("runs/tower"), config)
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from encoder.collapse import LEAST_INFORMATION, ROWS, CollapseWatch
from encoder.curves import Chart, draw_chart
from encoder.figures import ATTENTION_TOP, COLUMNS, panel_box, sheet_size
from encoder.recipe import PretrainConfig
from raddraft.files import read_jsonl, read_object, write_text
from raddraft.pages import embed, render_template
from raddraft.runs import to_yaml

Row = Mapping[str, Any]
SCHEDULES = {
    "Learning rate": {"backbone and heads": "lr", "prototypes": "lr_prototypes"},
    "Weight decay": {"weight decay": "weight_decay"},
    "Momentum of the teacher": {"momentum": "momentum"},
    "Temperature of the teacher": {"temperature": "temperature"},
}
MOST_FILMS = 64
"""Rows that a sheet of maps is looked through for."""


def write_page(folder: Path, config: PretrainConfig) -> None:
    """Write report.html to a run folder, of its log.jsonl, best.json, maps/ and crops.png, as far as they are there.

    Args:
        folder: of the run.
        config: its recipe.
    """
    crops, rows = folder / "crops.png", _read_log(folder)
    trained, probed, kept = [row for row in rows if "loss" in row], read_probes(folder), read_kept(folder)
    collapse, low_rows = _find_collapse(trained, config)
    step = max((row["step"] for row in rows), default=0)
    page = render_template(
        Path(__file__).with_name("pretrain.html.j2"),
        name=folder.absolute().name,
        config=config,
        step=step,
        last=trained[-1] if trained else {},
        speed=float(np.median([row["images_per_second"] for row in trained])) if trained else 0.0,
        kept=kept,
        start=_score_at_start(probed),
        lower=tell_lower(probed, kept, config),
        collapse=collapse,
        low_rows=low_rows,
        least=LEAST_INFORMATION,
        in_a_row=ROWS,
        losses=_draw_losses(trained, config) if trained else [],
        signs=_draw_signs(trained, config) if trained else [],
        probes=_draw_probes(probed, config.steps, kept) if probed else None,
        probe_rows=_tabulate(probed, kept) if probed else [],
        maps=_read_maps(folder / "maps"),
        crops=embed(crops.read_bytes()) if crops.is_file() else "",
        schedules=_draw_schedules(config, step),
        settings=changed_settings(config),
    )
    write_text(folder / "report.html", page)


def read_probes(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log.jsonl that have probes."""
    return [row for row in _read_log(folder) if "probes" in row]


def read_kept(folder: Path) -> Row:
    """What a run's best.json says of the teacher that is kept; nothing if there is none yet."""
    best = folder / "best.json"
    return read_object(best, "remove it: the next probes write it", ("step",)) if best.is_file() else {}


def tell_lower(probed: Sequence[Row], kept: Row, config: PretrainConfig) -> str:
    """A sentence if the probes of the teacher that is kept are lower than at the start, else nothing."""
    start, score = _score_at_start(probed), kept.get("score")
    if start is None or score is None or score >= start:
        return ""
    way_out = f"consider the start, {config.tower}" if config.tower else "nothing that they measure was learned"
    return f"probes on val are lower than at the start, {score:.3f} and not {start:.3f}; {way_out}"


def _score_at_start(probed: Sequence[Row]) -> float | None:
    return probed[0]["probe_mean"] if probed and probed[0]["step"] == 0 else None


def _read_log(folder: Path) -> list[dict[str, Any]]:
    log = folder / "log.jsonl"
    return [row for _, row in read_jsonl(log, appended=True)] if log.is_file() else []


def changed_settings(config: PretrainConfig) -> list[tuple[str, str, str]]:
    """Name, value and default of the settings that are not the default; probes by their names."""

    def flat(value: Any, prefix: str = "") -> dict[str, str]:
        if not isinstance(value, dict):
            items = value if isinstance(value, list) else [value]
            return {prefix: ", ".join("–" if item is None else str(item) for item in items) or "–"}
        parts = (flat(item, f"{prefix}.{key}" if prefix else key) for key, item in value.items())
        return {key: text for part in parts for key, text in part.items()}

    def plain(config: PretrainConfig) -> dict[str, str]:
        return flat(yaml.safe_load(to_yaml(config)) | {"watch": [watch.name for watch in config.watch]})

    ours, default = plain(config), plain(PretrainConfig())
    return [(key, text, default.get(key, "–")) for key, text in ours.items() if text != default.get(key)]


def _find_collapse(rows: list[dict[str, Any]], config: PretrainConfig) -> tuple[str, int]:
    """The sentence by which the run says that it has collapsed, or nothing; and how many rows at the end of the log are
    below the limit, during the warm-up, too. Adds "information" to the rows."""
    watch, told, low = CollapseWatch(round(config.warmup * config.steps)), "", 0
    for row in rows:
        if row.get("mean_entropy") is not None and row.get("teacher_entropy") is not None:
            row["information"] = row["mean_entropy"] - row["teacher_entropy"]
            low = low + 1 if row["information"] < LEAST_INFORMATION else 0
            told = watch.look(row["step"], row) or told
    return told, low


def _columns(rows: Sequence[Row], names: Mapping[str, str]) -> dict[str, list[tuple[float, float]]]:
    """Points of the columns of a log, by what they are called."""
    return {text: [(row["step"], row.get(column, math.nan)) for row in rows] for text, column in names.items()}


def _draw_losses(rows: Sequence[Row], config: PretrainConfig) -> list[Chart]:
    parts = {"sum, weighted": "loss", "DINO, local": "dino_local", "DINO, global": "dino_global", "iBOT": "ibot"}
    names = [name for name in rows[-1] if name.startswith("grad_norm_")]
    norms = {name.removeprefix("grad_norm_").replace("_", " "): name for name in names}
    clipped = {"clipped to": config.max_grad_norm}
    koleo = "lower: class tokens lie apart" if config.objective.koleo_weight else "weight 0: watched only"
    return [
        draw_chart("Loss and its parts", "cross-entropies in nats", _columns(rows, parts), config.steps),
        draw_chart("KoLeo", koleo, _columns(rows, {"KoLeo": "koleo"}), config.steps),
        draw_chart("Norms of gradients", "before clipping", _columns(rows, norms), config.steps, True, clipped),
    ]


def _draw_signs(rows: Sequence[Row], config: PretrainConfig) -> list[Chart]:
    steps, count = config.steps, config.objective.prototypes
    entropies = {"teacher's mean answer": "mean_entropy", "teacher": "teacher_entropy", "student": "student_entropy"}
    information = _columns(rows, {"information": "information"})
    alike = _columns(rows, {"mean pairwise cosine": "cosine", "spread": "spread"})
    logits = _columns(rows, {"spread of logits": "logit_spread"})
    least, most = {"too little": LEAST_INFORMATION}, {f"ln {count:,}": math.log(count)}
    return [
        draw_chart("What an answer tells about an image", "nats", information, steps, True, least),
        draw_chart("Entropies of the answers", "nats", _columns(rows, entropies), steps, guides=most),
        draw_chart("Class tokens of different images", "all alike at cosine 1, spread 0", alike, steps),
        draw_chart("Student's logits", "0: no prototype is preferred", logits, steps),
    ]


def _draw_schedules(config: PretrainConfig, step: int) -> list[Chart]:
    """The schedules of the whole run, with a mark where it is."""
    steps = sorted({round(share * (config.steps - 1)) for share in np.linspace(0, 1, 200)})
    plan = [{"step": one} | config.at(one) for one in steps]
    now = {"now": step} if 0 < step < config.steps else {}
    return [draw_chart(title, "", _columns(plan, names), config.steps, marks=now) for title, names in SCHEDULES.items()]


def _draw_probes(rows: Sequence[Row], steps: int, kept: Row) -> Chart:
    """Each probe and their mean, with a mark at the step that is kept."""
    series = {name: [(row["step"], row["probes"].get(name, math.nan)) for row in rows] for name in rows[0]["probes"]}
    mean = {"mean": [(row["step"], row["probe_mean"]) for row in rows]} if len(series) > 1 else {}
    marks = {"kept": kept["step"]} if kept else {}
    return draw_chart("Probes over the steps", "val", mean | series, steps, marks=marks, heavy=next(iter(mean), None))


def _tabulate(rows: Sequence[Row], kept: Row) -> list[tuple[str, ...]]:
    """Lines of a table: the probes at the start, at the step that is kept and at the last one."""
    chosen = {row["step"]: row for row in rows}.get(kept.get("step"))
    columns = {"start": rows[0]} | ({f"kept, step {chosen['step']:,}": chosen} if chosen else {}) | {"last": rows[-1]}
    lines = [
        (name, *(f"{row['probes'].get(name, math.nan):.3f}" for row in columns.values())) for name in rows[0]["probes"]
    ]
    return [("Probe", *columns), *lines, ("mean", *(f"{row['probe_mean']:.3f}" for row in columns.values()))]


def _read_maps(folder: Path) -> dict[str, Any]:
    """The panels of the sheets of the start, the middle and the end, as `encoder.figures.draw` lays them out.

    Returns:
        steps; tops, the ends of their scales of attention; films, of each its X-ray; and kinds: kind of map -> of each
        film its maps at these steps.
    """
    from PIL import Image

    sheets = sorted(path for path in folder.glob("step-*.png") if path.stem.removeprefix("step-").isdecimal())
    chosen = [sheets[i] for i in sorted({0, len(sheets) // 2, len(sheets) - 1})] if sheets else []
    opened, tops = [], []
    for path in chosen:
        with Image.open(path) as sheet:
            tops.append(sheet.info.get(ATTENTION_TOP))
            opened.append(sheet.convert("RGB"))
    sizes = {sheet_size(count, 1): count for count in range(1, MOST_FILMS + 1)}
    films = range(min((sizes.get(sheet.size, 0) for sheet in opened), default=0))

    def cut(sheet: Image.Image, row: int, column: int) -> str:
        file = io.BytesIO()
        sheet.crop(panel_box(row, column)).save(file, format="JPEG", quality=90)
        return embed(file.getvalue(), "jpeg")

    return {
        "steps": [int(path.stem.removeprefix("step-")) for path in chosen],
        "tops": tops,
        "films": [cut(opened[-1], row, 0) for row in films],
        "kinds": {
            kind: [[cut(sheet, row, column) for sheet in opened] for row in films]
            for column, kind in enumerate(COLUMNS, 1)
        },
    }
