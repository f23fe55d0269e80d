"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU.

Triton reads the variable when a program is decorated, which happens when its file is imported: so it is set here, before any
test file is.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
