"""Every metric as an `evaluate.Metric`, without the hub.

    import evaluate
    from metrics.evaluate_metrics import load

    load("radgraph").compute(predictions=drafts, references=reports)        # {"radgraph_e": .31, "radgraph_er": …}
    evaluate.combine([load("rouge_l"), load("rule")]).compute(predictions=drafts, references=reports)

`evaluate.load("rouge")` fetches its script from the hub and returns a bootstrap median; these run offline and return
the values of `metrics.score`.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from metrics.models import Models
from metrics.scoring import FAMILIES, choose, measure
from raddraft.errors import RadDraftError


class ReportMetric(evaluate.Metric):
    """One metric or family of `metrics.scoring`; `compute` returns {name: value}."""

    def __init__(self, name: str, models: Models | None = None, **options: Any):
        self.metric = name
        self.models = models or Models()
        super().__init__(config_name=name, **options)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=f"{', '.join(choose([self.metric]))} of radiology reports.",
            citation="",
            inputs_description="predictions and references: one text a report, in the same order.",
            features=datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("string"))),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:  # type: ignore[override]
        measures, _ = measure(predictions, references, [self.metric], self.models)
        return {name: one.value for name, one in measures.items()}


def load(name: str, models: Models | None = None, **options: Any) -> ReportMetric:
    """A metric or a family of metrics, by the names of `raddraft score --metrics`.

    Args:
        name: of `metrics.scoring.METRICS` or `FAMILIES`. Raises RadDraftError if it is unknown.
        models: where the learned metrics find their weights.
        options: of `evaluate.Metric`, such as experiment_id, num_process and process_id.
    """
    if name == "all":
        raise RadDraftError(f"One metric or family at a time; families: {', '.join(FAMILIES)}")
    choose([name])
    return ReportMetric(name, models, **options)
