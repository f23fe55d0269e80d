"""One file an architecture family: how its config is read and which ops its blocks record."""
