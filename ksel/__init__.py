"""ksel: knowledge selection for distilling pre-trained language models."""

__version__ = "0.1.0"
