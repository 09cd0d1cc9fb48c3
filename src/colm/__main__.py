"""`python -m colm`."""

from colm.cli import main

raise SystemExit(main())
