"""The program `lora-lightning`: parses the command line, calls the package and prints the results.

Nothing is computed here. This file imports nothing, so that `--help` answers immediately.
"""
