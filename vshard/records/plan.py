"""What a generation run is asked to do, checked and planned before anything is decoded or written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import OptionError, VideoError
from ..clips.plan import Sequence, exact_rate, frame_rate, plan_sequences, sample_frames
from ..clips.probe import VideoInfo
from ..depth.models import DepthOptions, check_depth_options
from . import names

if TYPE_CHECKING:
    from ..clips.scan import Scan

# What training takes of a record: 12 frames, crops of 256 pixels (facts of the original, section 7).
SEQ_MIN = 12
# A sequence is held in memory, 6 MB a frame at 1080p, several at a time; 16 crops of a frame cover it several times.
SEQ_MAX, SAMPLES_MAX = 128, 16
SIZE_MIN_PX = 256
# Frames are resized to a short side of 720 or 1080, and a square can come out a pixel short of it (facts of the
# original, section 12): no larger crop fits every sequence.
SIZE_MAX_PX = 719
# Frames are enlarged to a short side of up to 1080: a longer picture would take all memory.
ASPECT_MAX = 6
FORMATS = ("both", "dirs", "shards")
BACKWARD_MASKS = ("auto", "mlbw", "gradient")
DEFAULT_SHARD_BYTES = 1_000_000_000


@dataclass(frozen=True)
class GenerateOptions:
    """Options of one run over one video; names and defaults are those of the command line.

    ``video`` is the path as the user wrote it (its last part names the records), ``output`` the split folder,
    ``gpu`` as :func:`vshard.base.devices.choose_device` takes it. ``depth_weights`` is a folder or a repository,
    ``mask_weights`` the file of the backward mask's network; None = wherever they usually are.
    """

    video: str
    output: Path
    prefix: str = ""
    model_type: str = "Parallax"
    resolution: int | None = None
    depth_weights: str | None = None
    depth_flip: bool = False
    max_fps: float = 30.0
    seq: int = 16
    skip_first: int = 0
    skip_interval: int = 16
    batch_size: int = 2
    size: int = 512
    num_samples: int = 1
    divergence_level: int = 1
    backward_mask: str = "auto"
    mask_weights: Path | None = None
    shots: bool = True
    seed: int = 71
    gpu: int | None = None
    format: str = "both"
    shard_bytes: int = DEFAULT_SHARD_BYTES
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check every option by itself.

        Raises:
            OptionError: the first option that is out of its range.
        """
        for option, value, least, most in (
            ("--seq", self.seq, SEQ_MIN, SEQ_MAX),
            ("--max-fps", self.max_fps, 0.01, 1000),
            ("--skip-first", self.skip_first, 0, None),
            ("--skip-interval", self.skip_interval, 0, None),
            ("--batch-size", self.batch_size, 1, SEQ_MAX),
            ("--size", self.size, SIZE_MIN_PX, SIZE_MAX_PX),
            ("--num-samples", self.num_samples, 1, SAMPLES_MAX),
            ("--divergence-level", self.divergence_level, 1, 3),
            ("--shard-size", self.shard_bytes, 10**6, None),
        ):
            if not value >= least or (most is not None and value > most):
                allowed = f"{least} to {most}" if most is not None else f"{least} or more"
                raise OptionError(f"{option} {value}: allowed is {allowed}{_why(option)}")
        if self.seq % self.batch_size:
            raise OptionError(
                f"--batch-size {self.batch_size}: must divide --seq {self.seq} without a rest; choose one of "
                + ", ".join(str(size) for size in range(1, self.seq + 1) if self.seq % size == 0)
            )
        for option, name, allowed_names in (
            ("--format", self.format, FORMATS),
            ("--backward-mask", self.backward_mask, BACKWARD_MASKS),
        ):
            if name not in allowed_names:
                raise OptionError(f"{option} {name}: allowed are {', '.join(allowed_names)}")
        if self.mask_weights is not None and self.backward_mask == "gradient":
            raise OptionError(f"--mask-weights {self.mask_weights}: the gradient mask has none; leave it out")
        check_depth_options(self.depth_options)
        names.record_stem(self.prefix, self.model_type, self.video)

    @property
    def stem(self) -> str:
        """What the keys of this run's records begin with."""
        return names.record_stem(self.prefix, self.model_type, self.video)

    @property
    def depth_options(self) -> DepthOptions:
        """What the depth model is opened with."""
        return DepthOptions(
            model_type=self.model_type,
            resolution=self.resolution,
            weights=self.depth_weights,
            flip=self.depth_flip,
            batch_size=self.batch_size,
        )

    def recipe_options(self) -> dict[str, Any]:
        """Give the options that decide a record's bytes; its metadata keeps them."""
        elsewhere = {"video", "output", "batch_size", "gpu", "format", "shard_bytes", "overwrite"}
        # Where weights lie does not decide anything; what they are is kept beside.
        elsewhere |= {"depth_weights", "mask_weights", "backward_mask"}
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}

    def identity(self) -> dict[str, Any]:
        """Give the options that decide the run's files: a run goes on only where these are the same."""
        return self.recipe_options() | {"format": self.format, "shard_bytes": self.shard_bytes}


def check_video(info: VideoInfo, options: GenerateOptions) -> None:
    """Check what can be told of a video without decoding it.

    Raises:
        VideoError: its picture is too long and thin, or it is too short for one sequence.
    """
    if max(info.width, info.height) > ASPECT_MAX * min(info.width, info.height):
        raise VideoError(
            f"{info.path}: is {info.width}x{info.height}; one side may be at most {ASPECT_MAX} times the other"
        )
    sampled = sample_frames(info.pts, info.time_base, frame_rate(info), exact_rate(options.max_fps))
    if len(sampled) < options.skip_first + options.seq:
        raise VideoError(
            f"{info.path}: its {len(info.pts)} frames ({info.duration_seconds:.1f} s) hold no sequence of "
            f"{options.seq} frames after skipping {options.skip_first}; give a longer video"
            + (" or a smaller --skip-first" if options.skip_first else "")
            + (
                f" ({len(sampled)} of them at --max-fps {options.max_fps:g})"
                if len(sampled) < len(info.pts)
                else ""
            )
        )


def plan_run(info: VideoInfo, scan: Scan, options: GenerateOptions) -> list[Sequence]:
    """Plan the sequences of a run: none where no shot is long enough for one."""
    return plan_sequences(
        info,
        scan,
        seq=options.seq,
        skip_first=options.skip_first,
        skip_interval=options.skip_interval,
        max_fps=options.max_fps,
        shots=options.shots,
    )


def _why(option: str) -> str:
    return {
        "--seq": " (training takes 12 frames of a record)",
        "--size": " (training cuts 256 pixels out of a record; frames have a short side of 720 or 1080)",
    }.get(option, "")
