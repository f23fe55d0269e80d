"""Configuration files of training tools, read as questions to the planner; nothing in them is executed."""
