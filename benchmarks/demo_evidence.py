"""The evidence on the demo model: settings chosen on dev with an equal budget, then one frozen run on test.

    python benchmarks/demo_evidence.py tune --out docs/evidence/demo            # dev; writes tuned.json
    python benchmarks/demo_evidence.py test --out docs/evidence/demo [METHOD ...]   # test; one JSON per method
    python benchmarks/demo_evidence.py page --out docs/evidence/demo            # index.md from what is there

Everything is seeded; noise is the same for all methods of a case and seed. `test` may be run per method, in several
processes at a time.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from vsf import CFG, NAG, NASA, VSF, NoGuidance, stats
from vsf.demo.evaluate import OBJECTIVE, EvalResult, Space, demo_cases, describe, evaluate, tune
from vsf.demo.model import load_demo_pipeline
from vsf.demo.oracle import load_oracle

SCALES = (0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
OFFSETS = (0.0, 0.1, 0.5, 1.0, 2.0)
RANGES = {"stop": (0.5, 0.75, 1.0)}


def normalized(**knobs: Any) -> VSF:
    return VSF(normalize=1.0, **knobs)


SPACES = {
    "VSF": Space(VSF, {"scale": SCALES, "offset": OFFSETS, **RANGES}),
    "VSF, norm kept": Space(normalized, {"scale": SCALES, "offset": OFFSETS, **RANGES}),
    "NAG": Space(
        NAG, {"scale": (2.0, 3.0, 4.0, 6.0, 9.0), "tau": (1.5, 2.5, 5.0), "alpha": (0.125, 0.25, 0.5, 1.0), **RANGES}
    ),
    "NASA": Space(NASA, {"scale": (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75), **RANGES}),
    "CFG": Space(CFG, {"scale": (1.25, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.5, 10.0, 15.0)}),
}
METHODS = {"vsf": VSF, "nag": NAG, "nasa": NASA, "cfg": CFG}
COLUMNS = ("object_ok", "positive", "absent", "absent_unrelated", "specificity", "retention", "quality", "joint")


def file_name(name: str) -> str:
    return name.lower().replace(", ", "-").replace(" ", "-") + ".json.gz"


def run_tune(out: Path, cases: int, budget: int, only: list[str]) -> None:
    pipe, oracle = load_demo_pipeline(), load_oracle()
    out.mkdir(parents=True, exist_ok=True)
    for name in only or SPACES:
        show = lambda setting, score: print(f"{score:.3f} {setting}", flush=True)  # noqa: E731
        result = tune(pipe, oracle, {name: SPACES[name]}, demo_cases("dev", cases), budget, batch=48, progress=show)
        result.to_json(tuned_file(out, name))


def tuned_file(out: Path, name: str) -> Path:
    return out / ("tuned-" + file_name(name).removesuffix(".gz"))


def tuned(out: Path, name: str) -> Any:
    best = dict(json.loads(tuned_file(out, name).read_text())["best"][name])
    return METHODS[best.pop("method")](**best)


def run_test(out: Path, cases: int, seeds: int, only: list[str]) -> None:
    pipe, oracle = load_demo_pipeline(), load_oracle()
    for name in only or ["none", *SPACES]:
        method = NoGuidance() if name == "none" else tuned(out, name)
        result = evaluate(pipe, oracle, method, demo_cases("test", cases), range(seeds), batch=48)
        (out / file_name(name)).write_bytes(gzip.compress(json.dumps(result.to_dict()).encode(), mtime=0))
        print(name, {k: round(v.mean, 3) for k, v in result.summary().items()}, flush=True)


def run_page(out: Path) -> None:
    results = {}
    for name in ["none", *SPACES]:
        if (out / file_name(name)).is_file():
            results[name] = EvalResult.from_dict(json.loads(gzip.decompress((out / file_name(name)).read_bytes())))
    some = next(iter(results.values()))
    lines = [
        "# What each method does on the demo model", "",
        f"{len(some.cases)} test cases x {len(some.seeds)} noises, {some.steps} steps, held-out combinations. Means with 95 % "
        "intervals clustered by case. Settings were chosen on dev with the same number of tries per method, by this "
        f"objective: {OBJECTIVE}.", "",
        "absent: the part named by the negative is gone; unrelated: the same with the name of an unrelated part as the "
        "negative; specificity: their difference; retention: the object's other typical parts are still there; joint: "
        "object, colour, part gone and picture whole, all at once.", "",
        "| method | settings | " + " | ".join(c.replace("_ok", "").replace("_", " ") for c in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]  # fmt: skip
    for name, result in results.items():
        summary = result.summary()
        cells = [f"{s.mean:.3f} ({s.low:.3f}-{s.high:.3f})" if (s := summary.get(c)) else "-" for c in COLUMNS]
        lines.append(f"| {name} | {describe(result.method)} | " + " | ".join(cells) + " |")
    lines += ["", "## Paired differences in the objective against VSF", ""]
    if "VSF" in results:
        base, ids = results["VSF"].per_image("objective")
        for name, result in results.items():
            if name != "VSF":
                gap = stats.cluster_mean(result.per_image("objective")[0] - base, ids)
                lines.append(f"- {name}: {gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
    lines += ["", "## Provenance", "", "```json", json.dumps(some.provenance, indent=1), "```", "",
              "Made by `benchmarks/demo_evidence.py`; the records of every picture are the `.json.gz` files here."]  # fmt: skip
    path = out / "index.md"
    notes = path.read_text() if path.exists() else ""
    notes = notes[notes.index("## Notes") :] if "## Notes" in notes else ""
    path.write_text("\n".join(lines) + "\n" + ("\n" + notes if notes else ""))
    print(path.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("act", choices=["tune", "test", "page"])
    parser.add_argument("methods", nargs="*", help=", ".join(["none", *SPACES]))
    parser.add_argument("--out", type=Path, default=Path("docs/evidence/demo"))
    parser.add_argument("--cases", type=int, default=None, help="dev: 48, test: 200")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=12, help="settings tried per method")
    args = parser.parse_args()
    if args.act == "tune":
        run_tune(args.out, args.cases or 48, args.budget, args.methods)
    elif args.act == "test":
        run_test(args.out, args.cases or 200, args.seeds, args.methods)
    else:
        run_page(args.out)


if __name__ == "__main__":
    main()
