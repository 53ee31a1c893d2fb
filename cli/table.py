"""The commands, in the order of the work: name -> its help in one line (the module has the same name)."""

from __future__ import annotations

COMMANDS = {
    "probe": "Tell what a video holds and how many records it would make.",
    "generate": "Make records of a video: sequences of frames with occlusion masks.",
    "show": "Draw a sheet of a split's records with their holes coloured.",
    "ls": "List records: their videos, sizes and mask areas.",
    "split": "Move records from train/ to eval/, whole.",
    "pack": "Pack records into tar shards, each with its index.",
    "unpack": "Write the records of tar shards as folders.",
    "verify": "Check every shard, index and record; mend what is damaged.",
    "index": "Build the indexes of shards anew.",
    "train": "Train a video-inpainting model on a dataset.",
    "render": "Render a test clip: textured layers before a moving camera.",
    "demo": "Run the whole line on two rendered clips, from video to model.",
}
