"""Speed (`python -m benchmarks`) and the labeler (`python -m benchmarks.labeler`), measured from a clone."""
