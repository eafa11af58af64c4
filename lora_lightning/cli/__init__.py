"""The program `lora-lightning`: parses a command line, calls the package, prints.

Nothing is computed here, and nothing heavy is imported by this file: `--help` answers at once.
"""
