"""The page on which a radiologist reads studies and their drafts, served on this computer; see `raddraft read`."""
