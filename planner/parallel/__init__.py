"""How a step is spread over GPUs: what each engine keeps on a rank, gathers, reduces and moves to host memory."""
