"""How a step is trained: settings, optimizers, attention kernels, sharding."""
