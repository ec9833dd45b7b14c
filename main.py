"""Train or evaluate: python main.py --config-file-path FILE [--section.key VALUE ...]; --help shows every key."""

import signal
import sys

from utils.processes.startup import keep_freed_memory, prepare_output, refuse_windows

if __name__ == "__main__":
    refuse_windows()
    # Until the run installs its own handlers, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from relabel.cli.train import main

if __name__ == "__main__":
    prepare_output()
    keep_freed_memory()
    main(sys.argv[1:])
