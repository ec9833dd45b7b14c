"""The commands of `python -m relabel`: their parameters, checks of what was typed, and what they print."""
