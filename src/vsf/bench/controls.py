"""What a case is compared with: a negative about something else, and the parts of the object that must stay.

A damaged picture lacks its wheels, too. So every case is drawn a second time from the same noise with a negative that
has nothing to do with it, and the judge is asked about the case's own negative: what the true negative does beyond
that is what it *meant*. And a method that takes the wheels off shall leave the frame.

Nothing here needs torch, and nothing is random: the same case in the same set always gets the same control.
"""

from __future__ import annotations

from hashlib import sha256

from .cases import Case, CaseSet
from .rules import stems_clash, word_count

__all__ = ["kept", "unrelated"]


def kept(case: Case) -> tuple[str, ...]:
    """The object's other parts that must still be there; empty where none is known.

    The case's own field `kept` (separated by commas) if it has one; for a case of a demo world the object's other
    typical parts.
    """
    if case.kept is not None:
        return tuple(part for text in case.kept.split(",") if (part := text.strip()))
    of = case.of_world()
    return () if of is None else tuple(part for part in of.typical.get(case.object or "", ()) if part != case.part)


def unrelated(case: Case, cases: CaseSet) -> str:
    """The negative of the control: about as long as the case's own, and about nothing that is in the case.

    The case's own field `unrelated` if it has one. For a case of a demo world: a part that is not typical of the
    object. Otherwise the negative of another case, of another category where there is one; of these the nearest in
    number of words. Never one that shares a word stem with the case's prompt, negative, object or kept parts. Among
    equals a hash of the case decides, so that other cases may come and go without another choice.

    Raises:
        ValueError: nothing in the set is fit; give the case a field `unrelated`.
    """
    if case.unrelated is not None:
        return case.unrelated
    taken = " ".join((case.prompt, case.negative, case.object or "", *kept(case)))

    def rank(negative: str) -> bytes:
        return sha256(f"{case.id}|{negative}".encode()).digest()

    if (of := case.of_world()) is not None:
        alike = frozenset().union(*(group for group in of.alike if case.part in group))
        strange = set(of.parts) - set(of.typical.get(case.object or "", ())) - alike
        fit = [part for part in strange if not stems_clash(part, taken)]
        if fit:
            return min(fit, key=rank)
    others = [c for c in cases if c.id != case.id and not stems_clash(c.negative, taken)]
    pool = {c.negative for c in others if c.category != case.category} or {c.negative for c in others}
    if not pool:
        raise ValueError(
            f"case {case.id!r}: the set {cases.name!r} holds no negative that is unrelated to it; give the case a field "
            "'unrelated'"
        )
    length = word_count(case.negative)
    return min(pool, key=lambda negative: (abs(word_count(negative) - length), rank(negative)))
