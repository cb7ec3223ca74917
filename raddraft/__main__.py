"""`python -m raddraft ACTION …` is the same as `raddraft ACTION …`, also under `accelerate launch -m raddraft`."""

from raddraft.cli import main

main()
