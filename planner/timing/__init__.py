"""Seconds from the same ops: roofline, optimizer step, collectives."""
