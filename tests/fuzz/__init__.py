"""Fuzzing of every reader: real files, damaged at the level of their format.

`driver` runs cases in child processes and says what came of them; each other module
holds the readers of one kind of file, listed in `readers`.
"""
