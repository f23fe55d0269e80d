"""Architectures that no family mirrors: the real code's trace as a function of batch and length, kept in the user's cache."""
