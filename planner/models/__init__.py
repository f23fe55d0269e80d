"""Models: specs read from config.json, families of blocks, the catalog."""
