"""`python -m lora_lightning` is the same program as `lora-lightning`."""

import sys

from lora_lightning.main import main

if __name__ == "__main__":
    sys.exit(main())
