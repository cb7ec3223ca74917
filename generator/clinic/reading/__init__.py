"""The page on which a radiologist reads studies and their drafts, served on this computer; see `raddraft read`."""

from typing import Literal

Split = Literal["train", "val", "test", "all"]
"""Of the studies of manifests."""
