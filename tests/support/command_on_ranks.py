"""Started by torchrun in test_engines.py: runs `colm` in one engine on CPU processes.

torchrun --standalone --nproc_per_node=2 command_on_ranks.py ENGINE train CONFIG [...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support.engines import forget_settings, prepare_engine

if __name__ == "__main__":
    engine = sys.argv[1]
    torch.set_num_threads(1)
    prepare_engine(engine)
    # Training arguments begin with this; it must not forget what `prepare_engine` did.
    AcceleratorState._reset_state = staticmethod(lambda reset_partial_state=False: forget_settings(engine))
    from colm.lab.cli import main

    sys.exit(main(sys.argv[2:]))
