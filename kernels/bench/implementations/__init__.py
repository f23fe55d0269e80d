"""Implementations of each kernel that are timed side by side. One file for each kernel, of the kernel's name."""
