"""GPUs, instances and prices as data, each figure with its source and date."""
