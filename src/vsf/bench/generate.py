"""Drawing a run: files that are there whole or not at all, and going on where somebody stopped.

A group of pictures (`RunPlan.chunks`) is drawn together, its pictures are written, each before its record. Whoever is
killed at any moment loses at most the groups in hand; whoever goes on redraws each unfinished group as a whole, because
how samples are grouped decides the last bits of a picture, and writes what is missing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..files import write_whole
from .cases import CaseSet
from .drawer import Drawer, Group, Rendered, UnitFiles, load
from .run import Run, RunError, RunPlan, Store, Unit

__all__ = ["begin", "generate", "missing", "write"]

Progress = Callable[[int, int], None]
MODEL = {"weights": "weights", "pipeline": "pipeline class", "dtype": "dtype"}
"""Fields of a record that are the same in all pictures of a run, in words."""
PLACE = ("hardware", "device", "threads", "versions")
"""Fields that show in the last bits of a picture."""

# ---------------------------------------------------------------------------------------------------------------
# Files


def begin(folder: str | Path, plan: RunPlan, cases: CaseSet) -> Run:
    """`Run.create`, where a plan of which nothing was drawn yet (a point was refused, say) gives way to another.

    Raises:
        RunError, OSError: as `Run.create`; RunError also while another process draws there.
    """
    folder = Path(folder)
    if (folder / "plan.json").is_file():
        with _alone(folder):
            if not Store(folder / "records").keys():
                (folder / "plan.json").unlink(missing_ok=True)
            return Run.create(folder, plan, cases)
    return Run.create(folder, plan, cases)


def missing(run: Run) -> list[tuple[int, tuple[Unit, ...], frozenset[str]]]:
    """What is still to be drawn: (number of the group, the group, ids of its units without record or picture)."""
    pictures = {f"{path.parent.name}/{path.stem}" for path in (run.folder / "images").glob("*/*.png")}
    done = run.records.keys() & pictures
    groups: list[tuple[int, tuple[Unit, ...], frozenset[str]]] = []
    for number, group in enumerate(run.plan.chunks):
        wanted = frozenset(unit.id for unit in group) - done
        if wanted:
            groups.append((number, group, wanted))
    return groups


def write(run: Run, pictures: Sequence[UnitFiles]) -> None:
    """Write pictures into a run, each before its record, every file whole or not at all.

    Raises:
        RunError: the disk is full, or the folder cannot be written to.
    """
    try:
        for picture in pictures:
            path = run.image(picture.unit)
            path.parent.mkdir(parents=True, exist_ok=True)
            if picture.gif is not None:
                write_whole(path.with_name(f"{picture.unit.name}.gif"), picture.gif)
            write_whole(path, picture.png)
            run.records.put(picture.unit.id, picture.record)
    except OSError as error:
        raise RunError(
            f"cannot write to {run.folder}: {(error.strerror or str(error)).lower()}; what was drawn is kept, and the "
            "same command goes on from there"
        ) from error


def _compare(run: Run, about: Mapping[str, Any], warn: Callable[[str], None]) -> None:
    """Refuse to mix pictures of two models, and say what else is not as it was. Raises RunError."""
    there = next(iter(sorted(run.records.keys())), None)
    if there is None:
        return
    record = run.records.get(there)
    for name, word in MODEL.items():
        if record.get(name) != about[name]:
            raise RunError(
                f"the pictures in {run.folder} were drawn by a model with other {word} ({record.get(name)}, now "
                f"{about[name]}); begin another run"
            )
    changed = [name for name in PLACE if record.get(name) != about[name]]
    if changed:
        warn(
            f"pictures drawn from now on may differ in their last bits from those in {run.folder}, which were made with "
            f"other {', '.join(changed)}"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process draws a run at a time; the system lets go of the lock whatever happens. Raises RunError."""
    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(f"{folder} is being drawn by another process") from error
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {(error.strerror or str(error)).lower()}") from error
    try:
        yield
    finally:
        lock.release()


def _remove_parts(run: Run) -> None:
    """Remove what killed writers left unfinished."""
    for name in ("images", "records"):
        for path in (run.folder / name).glob("*/.*.part"):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------
# Runs


def generate(
    run: Run,
    pipe: Any = None,
    *,
    device: str | None = None,
    download: bool = False,
    workers: int = 1,
    ray: str | None = None,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Draw what is missing of a run.

    Args:
        pipe: the pipeline, if it is there already; else it is loaded as the plan says, where something is missing.
        device, download: for loading it.
        workers: processes on this machine, each with a model of its own (on CUDA one per GPU in turn); with `ray` the
            number of actors, 1 meaning one per GPU of the cluster.
        ray: the address of a Ray cluster, or "local".
        share: (rank, number of ranks) of this process among several that were started together.
        progress: called with (pictures written, pictures that were missing).
        warn: called with a sentence.

    Raises:
        RunError: a point cannot be drawn (then nothing was), the pictures there come from another model, memory or disk
            ran out, another process draws this run, or workers kept dying.
        ModelError, ValueError: see `load`.
    """
    rank, ranks = share
    groups = [g for g in missing(run) if g[0] % ranks == rank]
    total = sum(len(wanted) for _, _, wanted in groups)
    if not groups:
        return
    done = 0

    def written(pictures: Sequence[UnitFiles]) -> None:
        nonlocal done
        done += len(pictures)
        if progress is not None:
            progress(done, total)

    with _alone(run.folder) if ranks == 1 else nullcontext():
        if Run.open(run.folder).plan.to_dict() != run.plan.to_dict():
            raise RunError(f"{run.folder} got another plan meanwhile")
        if ranks == 1:
            _remove_parts(run)
        if pipe is None and (workers > 1 or ray is not None):
            from .cluster import draw_on_processes, draw_on_ray

            wanted = {number: names for number, _, names in groups}
            seen: list[dict[str, Any]] = []

            def keep(number: int, pictures: Sequence[UnitFiles]) -> None:
                made = {name: pictures[0].record.get(name) for name in (*MODEL, *PLACE)}
                if made not in seen:  # another worker, perhaps with another model
                    _compare(run, made, warn)
                    seen.append(made)
                chosen = [p for p in pictures if p.unit.id in wanted[number]]
                write(run, chosen)
                written(chosen)

            numbers, new = [number for number, _, _ in groups], _new_points(run, groups)
            if ray is not None:
                draw_on_ray(run.plan, run.cases, numbers, new, keep, ray, workers, download)
            else:
                draw_on_processes(run.plan, run.cases, numbers, new, keep, workers, device, download, warn)
            return
        drawer = Drawer(run.plan, run.cases, load(run.plan, device, download) if pipe is None else pipe)
        _compare(run, drawer.about, warn)
        drawer.check(_new_points(run, groups))
        _one_by_one(run, drawer, groups, written)


def _new_points(run: Run, groups: Sequence[tuple[int, Group, frozenset[str]]]) -> list[str]:
    """Points of which nothing was drawn yet, so that nobody knows whether they can be."""
    drawn = run.records.keys()
    known = {key.split("/")[0] for key in drawn}
    return [name for name in dict.fromkeys(group[0].point for _, group, _ in groups) if name not in known]


def _one_by_one(
    run: Run,
    drawer: Drawer,
    groups: Sequence[tuple[int, Group, frozenset[str]]],
    written: Callable[[Sequence[UnitFiles]], None],
) -> None:
    """Draw group after group; a thread encodes and writes one while the next is drawn."""

    def finish(rendered: Rendered, wanted: frozenset[str]) -> list[UnitFiles]:
        pictures = [p for p in drawer.encode(rendered) if p.unit.id in wanted]
        write(run, pictures)
        return pictures

    with ThreadPoolExecutor(1) as writer:
        writing: Future[list[UnitFiles]] | None = None
        for _, group, wanted in groups:
            rendered = drawer.render(group)
            if writing is not None:
                written(writing.result())
            writing = writer.submit(finish, rendered, wanted)
        if writing is not None:
            written(writing.result())
