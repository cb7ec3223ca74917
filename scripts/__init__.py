"""One file per action: `raddraft ACTION …` and `python -m scripts.ACTION …` are the same command."""
