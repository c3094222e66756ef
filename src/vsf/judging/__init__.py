"""Judges of one's own: labelled pictures, how well a judge answers them, and what its errors change.

    from vsf.judging import Labels, from_run, world_labels
    labels = from_run(Run.open("runs/demo"), ["oracle"])
    labels.save("labels")

A judge that can be asked has `answer` (`vsf.bench.judges.base.Answering`): a picture and a yes/no question, and what it
gives is P(yes). Labels are the truth that it is measured against, or trained on.
"""

from .hub import from_dataset, to_dataset
from .labels import ANSWERED, ASKS, DAMAGE, Label, Labels, LabelsError
from .sources import from_answers, from_json, from_run
from .splits import check_split, split
from .world import Drawn, collected, world_labels

__all__ = [
    "ANSWERED", "ASKS", "DAMAGE", "Drawn", "Label", "Labels", "LabelsError", "check_split", "collected", "from_answers",
    "from_dataset", "from_json", "from_run", "split", "to_dataset", "world_labels",
]  # fmt: skip
