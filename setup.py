"""Allow `pip install -e .` only: a wheel would lack main.py and configs/, which are read from the checkout."""

import sys

from setuptools import setup

if "bdist_wheel" in sys.argv:
    sys.exit("error: this project runs from its checkout; install it with `pip install -e .`")
setup()
