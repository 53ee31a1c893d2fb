"""vshard: ordinary videos into records, tar shards, training samples and an inpainting model."""

__version__ = "0.1.0"
