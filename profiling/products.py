"""Which operators take a workspace of cuBLAS from the allocator."""

PRODUCTS = ("mm.", "addmm.", "bmm.", "baddbmm.", "gemm_4bit.", "int8_scaled_mm.")
"""What their names start with."""
