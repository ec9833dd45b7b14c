"""The commands of `python -m relabel`: their parameters, checks of arguments, and output."""
