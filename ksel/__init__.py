"""ksel: knowledge selection for distilling pre-trained language models."""

import os

# Before torch is imported: threads that spin while they wait make a step many times slower
# where several processes share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
