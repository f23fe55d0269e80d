"""Micro-benchmarks of the kernels: cases, implementations side by side, timing that knows its noise, rows with provenance."""
