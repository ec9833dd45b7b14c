"""Measure label maps before training on them: whether they are intact, how sure and how right their targets are, what
random crops are taught, and whether the axes are stored in the right order.
"""
