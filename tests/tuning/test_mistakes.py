"""The sheet of a judge's worst mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vsf.cli import main
from vsf.judging import collected, world_labels
from vsf.judging.evaluate import truth
from vsf.judging.mistakes import worst, worst_sheet

LABELS = collected(world_labels(12, 4))


def test_they_come_by_how_sure_the_judge_was_of_what_is_not_so():
    true = truth(LABELS)
    answers = {key: (0.9 if label.answer else 0.1) for key, label in true.items()}
    first, second, open_ = list(true)[:3]
    answers[first], answers[second] = (0.45, 0.02) if true[first].answer else (0.55, 0.02)
    answers[second] = 0.02 if true[second].answer else 0.98
    known = {**answers, open_: None}
    found = worst(true, known, 5)
    assert [label.key for label, _ in found] == [second, first] and worst(true, known, 1) == found[:1]
    assert worst(true, {key: p if p is None else np.float64(p) for key, p in known.items()}, 5) == found
    sheet = worst_sheet(LABELS, found)
    assert sheet.width > sheet.height > 64
    with pytest.raises(ValueError, match="no mistake"):
        worst_sheet(LABELS, [])


def test_the_command_draws_it(tmp_path, capsys):
    LABELS.save(tmp_path / "labels")
    path = tmp_path / "worst.webp"
    assert main(["judge", "eval", str(tmp_path / "labels"), "--judge", "oracle", "--sheet", str(path)]) == 0
    if "no mistake" in capsys.readouterr().out:
        assert not path.exists()
    else:
        with Image.open(path) as drawn:
            assert drawn.format == "WEBP"
    assert (
        main(["judge", "eval", str(tmp_path / "labels"), "-a", "world", "--truth", "world", "--sheet", str(path)]) == 2
    )
    assert "--sheet is for --judge" in capsys.readouterr().err
