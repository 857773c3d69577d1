"""Muon for matrices and AdamW for the rest, with one linear schedule in steps.

Knows nothing about the model but its parameter names.
Source: Muon (Newton-Schulz orthogonalised momentum) as described by Keller Jordan, with the update
scaled by 0.2 sqrt(max(rows, columns)) as in Moonlight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nanotrain.precision import has_bf16

_NOT_MATRICES = (
    "embed",
    "lm_head",
    "pos_embed",
    "rel_pos",
    "queries",
    "router",
    "head",
    "codes",
    "separator",
)


def newton_schulz(g: Tensor, steps: int = 5) -> Tensor:
    """Orthogonalise each matrix of g [N, rows, columns], in bfloat16 where the device has it."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if has_bf16(g.device.type) else g.float()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(-1, -2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.transpose(-1, -2) if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; parameters of 3 dimensions are stacks, of 4 are convolutions."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                stack = update.flatten(1)[None] if p.ndim != 3 else update
                by_shape[stack.shape[1:]].append((p, stack))
            for shape, entries in by_shape.items():
                # Stacks (experts) are many and small: fewer iterations, a fifth of the step saved.
                steps = 3 if len(entries[0][1]) > 1 else 5
                done = newton_schulz(torch.cat([stack for _, stack in entries]), steps)
                scale = 0.2 * max(shape) ** 0.5
                for (p, _), new in zip(
                    entries, done.split([len(s) for _, s in entries]), strict=True
                ):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(new.reshape(p.shape).to(p.dtype), alpha=-group["lr"] * scale)


class Optimisers:
    """Both optimisers behind one schedule: warm-up, then linear to zero at `total` steps."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        muon_lr: float,
        adam_lr: float,
        total: int,
        warmup: int = 60,
        floor: float = 0.0,
    ) -> None:
        matrices, others = [], []
        for prefix, module in modules.items():
            for name, p in module.named_parameters():
                full = f"{prefix}.{name}"
                if p.requires_grad:
                    is_matrix = p.ndim >= 2 and not any(w in full for w in _NOT_MATRICES)
                    (matrices if is_matrix else others).append(p)
        self.muon = Muon(matrices, lr=muon_lr)
        self.adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.peaks = (muon_lr, adam_lr)
        self.total, self.warmup, self.floor = total, warmup, floor
        self.parameters = matrices + others

    def step(self, step: int, done: float | None = None) -> float:
        """One update at the schedule's rate for `step`. done: the share of the schedule that is
        over, where it does not go by steps. Returns the factor on the peak rates."""
        up = min(1.0, (step + 1) / self.warmup)
        down = max(self.floor, 1 - (step / self.total if done is None else done))
        factor = min(up, down)
        for optimiser, peak in zip((self.muon, self.adam), self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad(set_to_none=True)
        self.adam.zero_grad(set_to_none=True)
        return factor

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
