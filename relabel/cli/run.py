"""Run main.py's configuration: training, or with `util.test_only` evaluation, in every process of this node."""

from relabel.evaluation.run import test
from relabel.training.run import train
from utils.config.frozen_munch import FrozenMunch
from utils.processes.launch import launch


def run(config: FrozenMunch) -> None:
    """Train, or evaluate with util.test_only, in all processes of this node.

    Raises:
        UserError: bad input; nothing was created.
        SystemExit: preempted (143), or a process failed.
    """
    launch(test if config.util.test_only else train, config, config.compute, section="compute")
