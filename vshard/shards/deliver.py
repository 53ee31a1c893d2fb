"""A generation run whose shards go to a store: made in a folder of this machine, sent there when it is finished.

Stopped, the same command on the same machine goes on. The run's state is kept in the store behind its shards, so that
any machine knows what is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import platformdirs

from ..base.fetch import copy_file
from ..base.files import make_folder, write_file
from ..base.jobs import Meter, run_jobs
from ..base.report import Report
from ..base.stores import Remote, facts, list_folder, make_place, read_file, remove
from ..clips.probe import probe
from ..records import names
from ..records.plan import GenerateOptions
from .run import STATE_BYTES_MOST, RunState, check_same_run, outputs, read_state, remove_run, run_generation

SENT_AT_ONCE = 4


def work_folder(store: Remote) -> Path:
    """Give the folder of this machine where shards for ``store`` are made."""
    name = hashlib.sha256(str(store).encode()).hexdigest()[:16]
    return platformdirs.user_cache_path("vshard") / "runs" / name


def generate_to_store(options: GenerateOptions, store: Remote, report: Report) -> RunState:
    """Make the records of a video as shards in ``store``; ``options.output`` is the folder to make them in.

    Raises:
        VshardError: as :func:`run_generation`.
        StoreError: the store cannot be reached or written to; what was made stays for the same command.
    """
    options = replace(options, format="shards")
    state_place = store / names.STATE_FOLDER / f"{options.stem}.json"
    local_state = options.output / names.STATE_FOLDER / f"{options.stem}.json"
    if facts(state_place) is not None and not options.overwrite:
        make_folder(local_state.parent)
        fetched = local_state.with_suffix(".sent")
        write_file(fetched, read_file(state_place, STATE_BYTES_MOST))
        state = read_state(fetched)
        check_same_run(state, options, probe(Path(options.video)))
        report.say(f"{options.stem}: already in {store}, nothing to do")
        return state
    make_place(store)
    state = run_generation(options, report)
    shards = outputs(options.output, options.stem)
    _remove_others(store, options.stem, {shard.name for shard in shards})
    report.start(f"sending {options.stem}", sum(shard.stat().st_size for shard in shards), "bytes")
    run_jobs(lambda shard, meter: copy_file(shard, store / shard.name, meter), shards, SENT_AT_ONCE, report)
    copy_file(local_state, state_place, Meter(report))
    report.finish()
    remove_run(options.output, options.stem, local_state)
    return state


def _remove_others(store: Remote, stem: str, keep: set[str]) -> None:
    """Remove what an older run of this stem left in the store, its state first."""
    if facts(store) is None:
        return
    remove(store / names.STATE_FOLDER / f"{stem}.json")
    for entry in list_folder(store):
        shard = entry.name.removesuffix(names.INDEX_SUFFIX)
        if names.shard_stem(shard) == stem and entry.name not in keep:
            remove(store / entry.name)
