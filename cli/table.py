"""The commands, in the order of the work: name -> its help in one line (the module has the same name)."""

from __future__ import annotations

COMMANDS = {
    "probe": "Tell what a video holds and how many records it would make.",
    "generate": "Make records of a video: sequences of frames with occlusion masks.",
    "show": "Draw a sheet of a split's records with their holes coloured.",
    "pack": "Pack record folders into tar shards.",
    "unpack": "Write the records of tar shards as folders.",
    "train": "Train a video-inpainting model on a dataset.",
    "render": "Render a test clip: textured layers before a moving camera.",
    "demo": "Run the whole line on two rendered clips, from video to model.",
}
