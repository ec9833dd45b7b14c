"""Configuration files and command lines of any program: merge, check by type, report every mistake at once."""
