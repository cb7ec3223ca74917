"""List the metrics to score by: what they measure, whose they are, what weights they need and what they cost.

    raddraft metrics

Weights are listed by `raddraft weights`, with their licenses and how to get them.
"""

from __future__ import annotations

from raddraft.cli import run


def main() -> None:
    """List every family of metrics."""
    from metrics.catalog import format_metrics

    print(format_metrics())


if __name__ == "__main__":
    run("metrics")
