"""Data sets as a plan needs them: how long sequences are, and what padding, packing and grouping make of them."""
