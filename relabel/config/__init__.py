"""What a configuration may say: the type and range of every key, the rules across keys, and what may change when a
run continues. Nothing here imports torch, so that a wrong command is refused within a second."""
