"""The commands, in the order of the work: name -> its help in one line (the module has the same name)."""

from __future__ import annotations

COMMANDS = {
    "probe": "Tell what a video holds and how many records it would make.",
    "generate": "Make records of a video: sequences of frames with occlusion masks.",
    "show": "Draw a sheet of a split's records, or one sample of a training.",
    "ls": "List records: their videos, sizes and mask areas.",
    "split": "Move records from train/ to eval/, whole.",
    "pack": "Pack records into tar shards, each with its index.",
    "unpack": "Write the records of tar shards as folders.",
    "verify": "Check every shard, index and record; mend what is damaged.",
    "index": "Build the indexes of shards anew.",
    "bench": "Measure how fast a split is loaded, beside other loaders.",
    "train": "Train a video-inpainting model on a dataset.",
    "evaluate": "Score a model on records it has not seen, beside simple fills.",
    "export": "Write a trained model for iw3, and as ONNX.",
    "render": "Render a test clip: textured layers before a moving camera.",
    "demo": "Run the whole line on two rendered clips, from video to model.",
}
