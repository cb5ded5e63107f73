"""`python -m gptlab` is the `gptlab` command, and so is `torchrun -m gptlab`."""
import sys
from gptlab.cli import main

if __name__ == '__main__': sys.exit(main())
