"""Triton programs and their launches, imported where they run. One file for each kernel, of the kernel's name."""
