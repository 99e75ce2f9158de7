"""`python -m graftlm`, and `torchrun -m graftlm`."""

from graftlm.cli import main

if __name__ == "__main__":
    main()
