"""A generation run: records made of one video, kept as folders and shards, that can stop anywhere.

The run's state ``SPLIT/.vshard/{stem}.json`` says what it was asked, of which file, how many sequences are done
and what was rejected. It is written after the records it speaks of, so the same command goes on behind the last
finished sequence and ends with the same bytes as an unbroken run.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.devices import choose_device
from ..base.errors import OptionError, OutputError, RecordError, ShardError, VshardError
from ..base.files import check_folder, make_folder, part_of, write_file, writing
from ..base.locks import only_one
from ..base.report import Report
from ..clips.plan import Sequence, losses
from ..clips.probe import VideoInfo, probe
from ..records import names
from ..records.plan import GenerateOptions, check_video, plan_run
from ..records.record import remove_record, write_record
from .index import scan_part
from .write import Position, ShardWriter

if TYPE_CHECKING:
    from ..clips.scan import Scan
    from ..records.generate import Estimators

SCHEMA = "vshard.run/2"
SCAN_SUFFIX = ".scan"
# A long film has some thousands of rejects of about 200 bytes.
STATE_BYTES_MOST = 64_000_000
# Frames are resized to a short side of 720 or 1080.
SMALL_SIDE_PX = 720


@dataclass(frozen=True)
class RunState:
    """What is known of a run; ``finished`` sequences are done, from the first on.

    ``estimators`` names the weights it was begun with; ``unreadable`` counts frames, ``damage`` says what a reader of
    the file noticed.
    """

    options: dict[str, Any]
    source: dict[str, Any]
    estimators: dict[str, str]
    planned: int
    unreadable: int = 0
    damage: str | None = None
    finished: int = 0
    records: int = 0
    rejects: tuple[dict[str, str], ...] = ()
    shards: Position = field(default_factory=Position)
    complete: bool = False

    def to_bytes(self) -> bytes:
        """Write the state as JSON."""
        return (json.dumps({"schema": SCHEMA} | asdict(self), indent=1, sort_keys=True) + "\n").encode()

    @property
    def rejected(self) -> dict[str, int]:
        """Rejects counted by reason."""
        return dict(Counter(reject["reason"] for reject in self.rejects))


def run_generation(options: GenerateOptions, report: Report) -> RunState:
    """Make the records of ``options.video`` under ``options.output``; go on where the same run stopped.

    Raises:
        VshardError: the video, an option, the depth model or the output folder is not as it must be; what was
            finished before stays, and the same command goes on from there.
    """
    info = probe(Path(options.video))
    check_video(info, options)
    device = choose_device(options.gpu)
    check_folder(options.output)
    state_path = options.output / names.STATE_FOLDER / f"{options.stem}.json"
    begun = _begun(state_path, options, info)
    if begun is not None and begun.complete and not options.overwrite:
        return _already(begun, options, report)
    # These load torch and OpenCV.
    from ..clips.scan import load_or_scan
    from ..records.generate import open_estimators

    estimators = open_estimators(options, device, begun.estimators if begun else {}, report)
    if estimators.depth.licence:
        report.say(estimators.depth.licence)
    make_folder(options.output)
    make_folder(state_path.parent)
    with only_one(state_path.with_suffix(".lock"), f"making the records of {options.stem}"):
        if options.overwrite and not _goes_on(state_path, options, info, estimators.names()):
            remove_run(options.output, options.stem, state_path)
        state = _open_state(state_path, options, info, estimators.names())
        if state is not None and state.complete:
            return _already(state, options, report)
        scan = load_or_scan(info, state_path.with_suffix(SCAN_SUFFIX), report)
        sequences = plan_run(info, scan, options)
        if state is None:
            state = _fresh(options, info, scan, estimators.names(), len(sequences))
            # From here on there may be records, and this says whose they are.
            write_file(state_path, state.to_bytes())
        elif state.planned != len(sequences):
            raise OutputError(
                f"{state_path}: was planned with {state.planned} sequences, now there are {len(sequences)}: vshard or "
                "a library it uses has changed; make the records anew with --overwrite"
            )
        _tell(state, info, sequences, options, report)
        return _run(state, state_path, options, info, sequences[state.finished :], estimators, report)


def _already(state: RunState, options: GenerateOptions, report: Report) -> RunState:
    report.say(f"{options.stem}: already finished, nothing to do")
    if state.records and not outputs(options.output, options.stem):
        report.warn("its records are no longer here; --overwrite makes them again")
    return state


def _tell(
    state: RunState, info: VideoInfo, sequences: list[Sequence], options: GenerateOptions, report: Report
) -> None:
    """Say what is to be known before a long run."""
    if min(info.width, info.height) < SMALL_SIDE_PX:
        report.warn(
            f"{info.path.name} is {info.width}x{info.height}: its frames are enlarged to 720 or 1080 lines and will be "
            "blurred; 1080p is best"
        )
    for loss in losses(info, state.damage, state.unreadable):
        report.warn(f"{info.path.name} {loss}; records are made of the rest")
    if not sequences:
        report.warn(
            f"{info.path.name}: no shot is {options.seq} frames long; --no-shots lets sequences run on over cuts"
        )
    if state.finished:
        report.say(f"{options.stem}: going on after {state.finished} of {state.planned} sequences")


def _run(
    state: RunState,
    state_path: Path,
    options: GenerateOptions,
    info: VideoInfo,
    sequences: list[Sequence],
    estimators: Estimators,
    report: Report,
) -> RunState:
    """Make what is left of a run, noting each sequence when it is kept."""
    from ..records.generate import REJECT_DAMAGED, generate_records

    writer = None
    if options.format != "dirs":
        writer = ShardWriter(options.output, options.stem, options.shard_bytes, state.shards)
    report.start(f"generating {options.stem}", state.planned, "sequences")
    making = generate_records(info, sequences, options, estimators)
    try:
        for made in making:
            for record in made.records:
                if options.format != "shards":
                    write_record(options.output, record)
                if writer is not None:
                    writer.add(record)
            for reject in made.rejects:
                if reject.reason == REJECT_DAMAGED:
                    report.warn(f"{reject.key}: {reject.reason} ({reject.found})")
            state = replace(
                state,
                finished=made.sequence + 1,
                records=state.records + len(made.records),
                rejects=(*state.rejects, *(asdict(reject) for reject in made.rejects)),
                shards=writer.position if writer is not None else Position(),
            )
            write_file(state_path, state.to_bytes())
            rejected = sum(state.rejected.values())
            report.advance(state.finished, f"{state.records} records, {rejected} rejected")
        if writer is not None:
            writer.close()
    finally:
        making.close()
        if writer is not None:
            writer.abandon()
    state = replace(state, complete=True, shards=writer.position if writer is not None else Position())
    write_file(state_path, state.to_bytes())
    report.finish()
    return state


def _begun(state_path: Path, options: GenerateOptions, info: VideoInfo) -> RunState | None:
    """Give the state of this very run, if it is there."""
    try:
        state = read_state(state_path) if state_path.exists() else None
        if state is not None:
            check_same_run(state, options, info)
    except VshardError:
        # What is wrong is said once the folder is locked, unless --overwrite makes it right.
        return None
    return state


def _goes_on(state_path: Path, options: GenerateOptions, info: VideoInfo, estimators: dict[str, str]) -> bool:
    """Tell whether an unfinished run of the very same options is there, whole enough to go on with."""
    try:
        state = _open_state(state_path, options, info, estimators)
    except VshardError:
        return False
    if state is None or state.complete:
        return state is None
    shard = options.output / names.shard_file(options.stem, state.shards.shards)
    for path in (part_of(shard), shard):
        if state.shards.part_bytes and path.exists():
            try:
                with path.open("rb") as file:
                    scan_part(file, str(path), state.shards.part_bytes)
                return True
            except (ShardError, OSError):
                return False
    return state.shards.part_bytes == 0


def _open_state(
    state_path: Path, options: GenerateOptions, info: VideoInfo, estimators: dict[str, str]
) -> RunState | None:
    """Give the state to go on from, or None for a new run; refuse one of other options or another file."""
    if not state_path.exists():
        there = next(iter(outputs(options.output, options.stem)), None)
        if there is not None:
            raise OutputError(
                f"{there}: records named {options.stem} are there, but nothing says how they were made; choose "
                "another --prefix, or remove exactly these with --overwrite"
            )
        return None
    state = read_state(state_path)
    check_same_run(state, options, info)
    if not state.complete:
        for what, begun in state.estimators.items():
            if estimators.get(what) != begun:
                raise OptionError(
                    f"{options.stem}: its records were begun with {what} {begun or 'none'}, now it is "
                    f"{estimators.get(what) or 'none'}; give the same, choose another --prefix, or replace them with "
                    "--overwrite"
                )
    return state


def _source(info: VideoInfo) -> dict[str, Any]:
    return {"name": info.path.name, "size_bytes": info.size_bytes, "fingerprint": info.fingerprint}


def _fresh(
    options: GenerateOptions, info: VideoInfo, scan: Scan, estimators: dict[str, str], planned: int
) -> RunState:
    return RunState(
        options.identity(),
        _source(info),
        estimators,
        planned,
        unreadable=int((~scan.readable).sum()),
        damage=info.damage,
    )


def check_same_run(state: RunState, options: GenerateOptions, info: VideoInfo) -> None:
    """Check that a run was asked the same, of the same file.

    Raises:
        OptionError: it was not.
    """
    if state.source != _source(info):
        raise OptionError(
            f"{options.stem}: its records were made from another file ({state.source['name']}, "
            f"{state.source['size_bytes']} bytes; this one has {info.size_bytes}); choose another --prefix, or "
            "replace them with --overwrite"
        )
    now = options.identity()
    for name in now:
        if state.options.get(name) != now[name]:
            raise OptionError(
                f"{options.stem}: its records were made with --{name.replace('_', '-')} {state.options.get(name)}, "
                f"now it is {now[name]}; give the same, choose another --prefix, or replace them with --overwrite"
            )


def read_state(state_path: Path) -> RunState:
    """Read the state of a run.

    Raises:
        RecordError: it is not one.
    """
    try:
        if not state_path.is_file() or state_path.stat().st_size > STATE_BYTES_MOST:
            raise ValueError("not a file of a state's size")
        content = json.loads(state_path.read_bytes())
        if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
            raise ValueError("unknown schema")
        content["shards"] = Position(**content["shards"])
        content["rejects"] = tuple(content["rejects"])
        state = RunState(**content)
        counts = (state.planned, state.finished, state.records, state.shards.shards, state.shards.part_bytes)
        if not all(isinstance(part, dict) for part in (state.options, state.source, state.estimators)):
            raise ValueError("parts are missing")
        if not {"name", "size_bytes"} <= set(state.source) or not isinstance(state.damage, (str, type(None))):
            raise ValueError("its source is not named")
        if not all(isinstance(reject, dict) and "reason" in reject for reject in state.rejects):
            raise ValueError("rejects without a reason")
        if (
            not all(isinstance(count, int) and count >= 0 for count in counts)
            or state.finished > state.planned
        ):
            raise ValueError(f"impossible counts {counts}")
        return state
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(
            f"{state_path}: is not a run's state ({error}); remove these records with --overwrite"
        ) from error


def outputs(split: Path, stem: str) -> list[Path]:
    """Give the record folders and shards of exactly this stem."""
    key, shard = f"{stem}_", f"{stem}-"
    found = []
    for path in sorted(split.iterdir()):
        if path.is_dir() and path.name.startswith(key) and path.name[len(key) :].isdigit():
            found.append(path)
        number, _, suffix = path.name[len(shard) :].partition(".")
        if path.name.startswith(shard) and number.isdigit() and f".{suffix}".startswith(names.SHARD_SUFFIX):
            found.append(path)
    return found


def remove_run(split: Path, stem: str, state_path: Path) -> None:
    """Remove exactly the state, records and shards of ``stem``; without the state nothing half-removed goes on."""
    with writing(state_path):
        state_path.unlink(missing_ok=True)
        state_path.with_suffix(SCAN_SUFFIX).unlink(missing_ok=True)
    for path in outputs(split, stem):
        if path.is_dir():
            remove_record(split, path.name)
        else:
            with writing(path):
                path.unlink()
