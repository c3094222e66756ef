"""Splits by group: no object is on both sides, and both answers are on every side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import combinations

from .labels import Labels, LabelsError, word

__all__ = ["check_split", "part", "split"]


def split(labels: Labels, shares: Mapping[str, float], seed: int = 0) -> dict[str, Labels]:
    """Part labels by their groups, {"train": 0.7, "dev": 0.15, "test": 0.15}: whole groups, as near to the shares as can be.

    A hash of seed and group puts the groups in order, so which part a group is in depends on the seed, the shares and which
    groups there are, and not on the order of labels. A picture that groups of several parts have in common (a background
    from which the object is gone) stays in the last of these parts; what the others ask about it is left out.

    Raises:
        LabelsError: a share that is not above 0, fewer groups than parts, or a part that lacks a class (see `check_split`).
    """
    if not shares or any(not share > 0 for share in shares.values()):
        raise LabelsError(f"every part needs a share above 0, got {dict(shares) or 'none'}")
    groups = sorted({label.group for label in labels}, key=lambda group: sha256(f"{seed}|{group}".encode()).digest())
    if len(groups) < len(shares):
        raise LabelsError(f"{len(groups)} groups ({', '.join(groups[:5])}) cannot be parted into {', '.join(shares)}")
    # Everybody gets one, and each further one goes to who lacks most (Sainte-Laguë).
    sizes = dict.fromkeys(shares, 1)
    for _ in range(len(groups) - len(shares)):
        sizes[max(shares, key=lambda name: shares[name] / (sizes[name] + 0.5))] += 1
    of: dict[str, str] = {}
    for name, size in sizes.items():
        of |= dict.fromkeys(groups[:size], name)
        groups = groups[size:]
    return part(labels, of, tuple(shares))


def part(labels: Labels, of: Mapping[str, str], names: Sequence[str]) -> dict[str, Labels]:
    """Labels by the part that each group is in, in the order `names`; a shared picture as in `split`.

    Raises:
        LabelsError: a part that lacks a class.
    """
    last: dict[str, str] = {}
    for label in labels:
        last[label.image] = max(last.get(label.image, names[0]), of[label.group], key=list(names).index)
    parts = {name: labels.only(o for o in labels if of[o.group] == name and last[o.image] == name) for name in names}
    check_split(parts)
    return parts


def check_split(parts: Mapping[str, Labels]) -> None:
    """Hold given parts to what `split` promises.

    Raises:
        LabelsError: a group or a picture is in two parts; or a kind of question has no yes or no no in one of them.
    """
    for (a, one), (b, other) in combinations(parts.items(), 2):
        if both := sorted({label.group for label in one} & {label.group for label in other}):
            raise LabelsError(f"in {a} and in {b}, which must not share an object: {', '.join(map(repr, both[:8]))}")
        if same := set(one.images) & set(other.images):
            raise LabelsError(f"{len(same)} pictures are in {a} and in {b}, the first of them {min(same)}")
    kinds = sorted({label.asks for part in parts.values() for label in part})
    for name, part in parts.items():
        for asks in kinds:
            said = {label.answer for label in part if label.asks == asks}
            for answer in (True, False):
                if answer not in said:
                    raise LabelsError(
                        f"{name} has no question of the kind {asks!r} that is answered by {word(answer)}; it needs both"
                    )
