"""What trained experiments are made of: models that are compared, their runs, tuning, records and pictures."""
