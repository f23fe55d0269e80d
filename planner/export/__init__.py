"""A plan as files that other tools run as they are: one file per tool, one registry."""
