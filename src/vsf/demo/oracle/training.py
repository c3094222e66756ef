"""Training the oracle, and measuring how well it reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from .bank import Bank, Labelled, labelled, make_bank, mixed_batch
from .distort import DISTORTIONS, distort
from .network import CARD, CLASSES, HEADS, NONE, PARTS, WEIGHTS, Net
from .reading import Oracle, load_oracle, quality_of, world_key


def _loss(out: dict[str, Tensor], batch: Labelled) -> Tensor:
    known = ~batch.parts.isnan()
    part = F.binary_cross_entropy_with_logits(out["part"].float(), batch.parts.nan_to_num(0), reduction="none")
    loss = F.cross_entropy(out["object"].float(), batch.object, label_smoothing=0.01)
    loss = loss + F.cross_entropy(out["color"].float(), batch.color, label_smoothing=0.01)
    loss = loss + 8 * (part * known).sum() / known.sum()
    return loss + 5 * F.mse_loss(out["damage"].float(), batch.damage)


def train_oracle(
    out: str | Path,
    samples: int = 220_000,
    seed: int = 0,
    *,
    renders: int = 14_000,
    held_out: int = 2_000,
    batch: int = 128,
    progress: bool = True,
) -> Oracle:
    """Train on the world's training split, measure on its dev and test splits, save to ``out``.

    ``samples`` pictures are seen, made on the fly from ``renders`` stored renders. The folder ``out`` gets the weights
    (fp16 safetensors) and ``oracle.json`` with the held-out figures. Deterministic for one machine and seed.
    """
    rng = np.random.default_rng(seed)
    gen = torch.Generator().manual_seed(seed)
    bank = make_bank(renders, rng, "train")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net()
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    steps = max(1, samples // batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1, pct_start=0.1)
    net.train()
    for step in range(steps):
        rows = torch.randint(renders, (batch,), generator=gen)
        data = mixed_batch(bank, rows, gen)
        with torch.autocast("cpu", torch.bfloat16):
            output = net(data.image.contiguous(memory_format=torch.channels_last))
        loss = _loss(output, data)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
        optimizer.step()
        schedule.step()
        if progress and (step % 100 == 0 or step == steps - 1):
            print(f"oracle: step {step + 1}/{steps}, loss {float(loss.detach()):.4f}", flush=True)
    net = net.to(memory_format=torch.contiguous_format).eval()  # pyright: ignore[reportCallIssue]
    tensors = {f"net.{k}": v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict({k[4:]: v.float() for k, v in tensors.items()})  # what is measured is what is saved
    card: dict[str, Any] = {
        "world": world_key(),
        "seed": seed,
        "samples": steps * batch,
        "renders": renders,
        "parameters": sum(p.numel() for p in net.parameters()),
        "temperature": dict.fromkeys(HEADS, 1.0),
    }
    tensors |= _fit_distance(net, bank)
    oracle = Oracle(net, tensors, card)
    dev = make_bank(held_out, np.random.default_rng([seed, 1]), "dev")
    test = make_bank(held_out, np.random.default_rng([seed, 2]), "test")
    card["quality"] = _fit_quality(oracle, dev)
    card["temperature"] = _fit_temperature(oracle, dev, seed)
    card["held_out"] = _measure(oracle, test, seed)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", "utf-8")
    return load_oracle(folder)


def _clean(bank: Bank, soften: bool, seed: int = 0) -> Labelled:
    return labelled(bank, torch.arange(len(bank.image)), "clean", torch.Generator().manual_seed(seed), soften)


def _fit_distance(net: Net, bank: Bank) -> dict[str, Tensor]:
    """Means per object [K + 1, D] and the whitening matrix [D, D] of the features of clean renders."""
    n = min(len(bank.image), 6000)
    with torch.no_grad():
        f = torch.cat([net(piece.float() / 255)["features"] for piece in bank.image[:n].split(256)])
    label = bank.object[:n]
    mean = torch.stack([f[label == k].mean(0) if (label == k).any() else f.mean(0) for k in range(len(CLASSES))])
    centred = (f - mean[label]).double()
    cov = centred.T @ centred / len(f)
    scale = cov.diagonal().clamp_min(1e-8).sqrt()
    corr = cov / scale[:, None] / scale[None]
    values, vectors = torch.linalg.eigh(0.95 * corr + 0.05 * torch.eye(len(corr), dtype=corr.dtype))
    whiten = (vectors * values.rsqrt()) / scale[:, None]
    return {"distance.mean": mean.half(), "distance.whiten": whiten.float()}


def _fit_quality(oracle: Oracle, bank: Bank) -> dict[str, Any]:
    def distance(soften: bool) -> Tensor:
        out = oracle.logits(_clean(bank, soften, 4).image)
        return oracle.distance(out["features"], out["object"])

    typical, edge = (float(v) for v in distance(False).quantile(torch.tensor([0.5, 0.99])))
    scale = {"typical": typical, "edge": edge}
    threshold = float(quality_of(distance(True), **scale).quantile(0.05))
    return {"scale": scale, "threshold": threshold}


def _held_out_mixture(oracle: Oracle, bank: Bank, seed: int) -> tuple[dict[str, Tensor], Labelled]:
    gen = torch.Generator().manual_seed(seed + 5)
    batch = mixed_batch(bank, torch.randperm(len(bank.image), generator=gen), gen)
    return oracle.logits(batch.image), batch


def _judged(head: str, logits: Tensor, batch: Labelled, t: float) -> tuple[Tensor, Tensor]:
    """Confidence of the decision and whether it is right, for every judged label of a head (parts: each part)."""
    if head == "part":
        known = ~batch.parts.isnan()
        p = (logits / t).sigmoid()
        return torch.maximum(p, 1 - p)[known], ((p >= 0.5) == (batch.parts == 1))[known]
    label = getattr(batch, head)
    confidence, decided = (logits[label >= 0] / t).softmax(1).max(1)
    return confidence, decided == label[label >= 0]


def _fit_temperature(oracle: Oracle, bank: Bank, seed: int) -> dict[str, float]:
    """One temperature per head (Guo et al. 2017) that minimises the log loss of the decisions on the dev mixture."""
    out, batch = _held_out_mixture(oracle, bank, seed)
    best: dict[str, float] = {}
    for head in HEADS:
        scores: list[tuple[float, float]] = []
        for t in np.geomspace(0.25, 4, 49):
            if head == "part":
                known = ~batch.parts.isnan()
                loss = F.binary_cross_entropy_with_logits(out[head][known] / t, batch.parts[known])
            else:
                loss = F.cross_entropy(out[head] / t, getattr(batch, head))
            scores.append((float(loss), float(t)))
        best[head] = min(scores)[1]
    return best


def calibration_error(confidence: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over bins of |accuracy - confidence|, weighted by the number in the bin."""
    which = (confidence * bins).long().clamp_max(bins - 1)
    total = 0.0
    for k in range(bins):
        inside = which == k
        if inside.any():
            total += abs(float(right[inside].float().mean() - confidence[inside].mean())) * int(inside.sum())
    return total / len(confidence)


def _measure(oracle: Oracle, bank: Bank, seed: int) -> dict[str, Any]:
    """Held-out figures: accuracy per head on clean, softened and mixed pictures, ECE before and after scaling."""
    report: dict[str, Any] = {}
    sets = {name: _clean(bank, name == "softened", 6) for name in ("clean", "softened")}
    results = {name: (oracle.logits(batch.image), batch) for name, batch in sets.items()}
    results["mixture"] = _held_out_mixture(oracle, bank, seed + 1)
    for name, (out, batch) in results.items():
        row: dict[str, Any] = {"pictures": len(batch.image)}
        for head in HEADS:
            confidence, right = _judged(head, out[head], batch, oracle.card["temperature"][head])
            before, _ = _judged(head, out[head], batch, 1.0)
            row[head] = {
                "accuracy": float(right.float().mean()),
                "judged": int(right.numel()),
                "ece": calibration_error(confidence, right),
                "ece_before_scaling": calibration_error(before, right),
            }
        known = ~batch.parts.isnan()
        wrong = ((out["part"] >= 0) != (batch.parts == 1)) & known
        row["part"]["wrong_by_part"] = {p: int(wrong[:, i].sum()) for i, p in enumerate(PARTS) if wrong[:, i].any()}
        row["part"]["all_parts_of_a_picture"] = float((~wrong.any(1)).float().mean())
        report[name] = row
    # Destroyed pictures must not be called an object.
    gone = results["mixture"][1].object == CLASSES.index(NONE)
    report["destroyed"] = {
        "pictures": int(gone.sum()),
        "read_as_none": float((results["mixture"][0]["object"][gone].argmax(1) == CLASSES.index(NONE)).float().mean()),
    }
    n = min(256, len(bank.image))
    clean = bank.image[:n].permute(0, 2, 3, 1).numpy()
    report["quality"] = {
        kind: {
            f"{s:.2f}": float(oracle.read(distort(clean, kind, s)).quality.mean())
            for s in (0, 0.1, 0.25, 0.5, 0.75, 1.0)
        }
        for kind in DISTORTIONS
    }
    return report
