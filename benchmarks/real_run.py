"""Does a model that was trained on some videos fill the holes of others better than fills that need no training?

    python benchmarks/real_run.py VIDEOS -o FOLDER [--hold-out tokyo-walk] [--samples 6000] [--arch narrow] [--gpu -1]

VIDEOS is a folder of video files. Records are made of each at all three divergence levels, those of the held-out
videos aside, and varied copies of those to train on (`varied.py`); a model is trained on them and evaluated on the
held-out ones, a table for each level. Every step is a command that is printed. Stopped, the same call goes on where it
was; FOLDER keeps everything, pictures too. Depth is Parallax and masks are made without weights, so that nothing is
downloaded. 6000 samples of the narrow network take about 80 minutes of two CPU cores, the records 15.
--checkpoint-file goes on from the model of such a run, at a lower --learning-rate, say, and into another FOLDER.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from varied import vary

from vshard.stream.samples import FRAMES

LEVELS = (1, 2, 3)
SAMPLES_AN_EPOCH = 200
SUFFIXES = {".mp4", ".mkv", ".webm", ".mov", ".avi"}


def command(*words: object) -> None:
    """Run a vshard command as a user would; its failure ends this script."""
    arguments = [str(word) for word in words]
    print(f"\n$ vshard {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "vshard_cli.main", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def make_records(video: Path, split: Path, level: int, crops: int) -> None:
    command(
        *("generate", video, "-o", split, "--prefix", f"{video.stem}-{level}", "--model-type", "Parallax"),
        *("--backward-mask", "gradient", "--divergence-level", level, "--seed", level),
        *("--skip-interval", 0, "--num-samples", crops, "--format", "dirs"),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument(
        "--hold-out", action="append", metavar="NAME", help="a video's name without its suffix"
    )
    parser.add_argument("--samples", type=int, default=6000, help="training samples in all")
    parser.add_argument("--crops", type=int, default=4, help="crops of a training sequence")
    parser.add_argument("--draws", type=int, default=2, help="of varied copies of a training record")
    parser.add_argument("--checkpoint-file", type=Path, help="the model of an earlier run, to go on from")
    parser.add_argument("--arch", default="narrow")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--gpu", type=int, default=-1)
    options = parser.parse_args()

    held_out = set(options.hold_out or ["tokyo-walk"])
    videos = sorted(path for path in options.videos.iterdir() if path.suffix in SUFFIXES)
    unknown = held_out - {video.stem for video in videos}
    if unknown or len(held_out) == len(videos):
        parser.error(f"{options.videos}: has to hold {', '.join(sorted(held_out))} and videos to train on")

    data = options.output / "data"
    for level in LEVELS:
        for video in videos:
            # The held-out holes that guide the run are the middle ones; all widths are scored at the end.
            held = options.output / f"level-{level}" / "eval" if level != LEVELS[1] else data / "eval"
            if video.stem in held_out:
                make_records(video, held, level, 1)
            else:
                make_records(video, data / "train", level, options.crops)

    print(f"\n$ python benchmarks/varied.py {data / 'train'} --draws {options.draws}", flush=True)
    vary(data / "train", options.draws)

    # One fall of the rate: the schedule leaves the last epoch of --max-epoch out.
    an_epoch = max(1, min(SAMPLES_AN_EPOCH, options.samples // 3))
    epochs = max(3, round(options.samples / an_epoch)) + 1
    model = options.output / "model"
    if any(model.glob("*.checkpoint*.pth")):
        begin = ["--resume"]
    elif options.checkpoint_file:
        begin = ["--checkpoint-file", options.checkpoint_file]
    else:
        begin = []
    command(
        *("train", "-i", data, "--model-dir", model, "--video", "--arch", options.arch, "--loss", "psnr"),
        *("--learning-rate", options.learning_rate, "--learning-rate-cycles", 1, "--warmup-epoch", 1),
        *("--max-epoch", epochs, "--num-samples", an_epoch * FRAMES, "--backward-step", 1),
        *("--disable-hard-example", "--eval-step", 10, "--gpu", options.gpu, *begin),
    )  # fmt: skip
    for level in LEVELS:
        split = data / "eval" if level == LEVELS[1] else options.output / f"level-{level}" / "eval"
        if not any(split.glob("*/meta.json")):
            print(f"\nlevel {level}: the held-out videos gave no record, their holes are too small")
            continue
        command(
            *("evaluate", model / "inpaint.light_video_inpaint_v1.pth", "-i", split, "--no-lpips"),
            *("-o", options.output / f"evaluation-{level}", "--gpu", options.gpu),
        )  # fmt: skip


if __name__ == "__main__":
    main()
