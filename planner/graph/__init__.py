"""Tensors, ops, blocks and the ledger that walks them."""
