"""A training run: build its parts from the config, update, validate, save, resume, and report what ended it."""
