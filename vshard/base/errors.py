"""Every error a user can meet, in one tree.

    VshardError
    ├── OptionError        an option or argument is out of its range         (also ValueError)
    ├── VideoError         a video cannot be read, or holds too little       (also ValueError)
    ├── RecordError        a record's images or metadata are not valid       (also ValueError)
    ├── ShardError         a tar shard or its index is not valid             (also ValueError)
    ├── DatasetError       a dataset folder lacks what training needs        (also ValueError)
    ├── DepthModelError    a depth model is unknown or cannot be had         (also ValueError)
    ├── MaskModelError     the mask network's weights cannot be had or used  (also ValueError)
    ├── WorkerError        a process of loading or of training died          (also RuntimeError)
    ├── CheckpointError    a model file is not one, or does not fit          (also ValueError)
    ├── OutputError        a file or folder cannot be written                (also OSError)
    ├── StoreError         a store refuses, is not reachable or sends less   (also OSError)
    ├── TrainingError      training cannot go on (train/run.py)              (also ArithmeticError)
    └── StoppedError       the user or the system stopped the work (base/stopping.py)

A message is one line: which file or record, what was found, what is allowed, what to do.
"""

from __future__ import annotations


class VshardError(Exception):
    """Base of all errors that vshard raises on purpose; ``str(error)`` is one line for the user."""


class OptionError(VshardError, ValueError):
    """An option is out of its allowed range, or two options contradict each other."""


class VideoError(VshardError, ValueError):
    """A video file cannot be read, or does not hold what is needed."""


class RecordError(VshardError, ValueError):
    """A record's images or metadata are missing, damaged or do not fit together."""


class ShardError(VshardError, ValueError):
    """A tar shard or its index is damaged or not in our layout."""


class DatasetError(VshardError, ValueError):
    """A dataset folder lacks what training needs."""


class DepthModelError(VshardError, ValueError):
    """A depth model's name is unknown, or its weights cannot be had."""


class MaskModelError(VshardError, ValueError):
    """The weights of the mask network cannot be had, or are not its weights."""


class WorkerError(VshardError, RuntimeError):
    """A process that loads samples, or one of several that train, died."""


class CheckpointError(VshardError, ValueError):
    """A model file is not a checkpoint, or holds another network."""


class OutputError(VshardError, OSError):
    """A file or folder cannot be written."""


class StoreError(VshardError, OSError):
    """A store (or a local folder) refuses, is not reachable, or sends something else than it said."""
