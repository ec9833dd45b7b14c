"""What a configuration may contain.

The type and range of every key, rules across keys, and what may change when a run continues. Nothing here imports
torch, so a wrong command is refused within a second.
"""
