"""What to rent or buy for a set of training jobs and serving loads."""
