"""`python -m lora_lightning` is the same program as `lora-lightning`."""

from lora_lightning.cli.main import program

if __name__ == "__main__":
    program()
