"""The command line tools, importable as `tfopt.tools`."""
