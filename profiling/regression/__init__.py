"""`plan check`: the memory of cases against a committed baseline, and who holds the new bytes."""
