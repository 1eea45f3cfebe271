"""How fast layerfs is beside other ways to read and write the same bytes on the same machine, in one run.

A number alone says little here: machines differ, and one machine differs from minute to minute. So every workload goes
over all contenders in turn, round after round in changing order, and what counts is the ratio within a round.
Nothing here asserts a time.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
