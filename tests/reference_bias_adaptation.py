"""Bias adaptation loop by loop, slow on purpose: the paper's rule and this project's own.

Buffers every pre-activation, loops over latents and groups, float64 throughout.
"""

import math
from dataclasses import dataclass, field

import torch


@dataclass
class ReferenceBiasAdaptation:
    """Settings by the paper's letters; ``rule`` is "paper", "group_mean" or "group_newton"."""

    rule: str
    group: list[int]
    target: list[float]
    gamma_minus: float
    gamma_plus: float
    epsilon: float
    period: int
    cap: float = 3.0
    buffer: list[torch.Tensor] = field(default_factory=list)
    steps: int = 0
    silent: list[int] = field(default_factory=list)
    band: list[float] = field(default_factory=list)

    def step(self, bias: list[float], y: torch.Tensor, c: float) -> list[float]:
        """``bias`` of M latents, range [-c, 0]; y: (n, M) pre-activations, bias included."""
        self.buffer.append(y.double())
        self.steps += 1
        if self.steps % self.period != 0:
            return bias
        samples = torch.cat(self.buffer)
        self.buffer = []
        n, latents = len(samples), range(len(bias))
        p, r = [], []
        for m in latents:
            values = samples[:, m].tolist()
            p.append(sum(1 for value in values if value > 0) / n)
            r.append(max(0.0, *values))
        self.silent = self.silent or [0 for _ in latents]
        self.silent = [0 if p[m] > 0 else self.silent[m] + n for m in latents]
        if self.rule == "paper":
            return self._paper(bias, p, r, c)
        self.band = self.band or [0.0 for _ in latents]
        near = [
            sum(1 for value in samples[:, m].tolist() if 0 < value < self.band[m]) / n
            for m in latents
        ]
        steps = [self._step_of_group(m, p, near, c) for m in latents]
        self.band = [self._next_band(m, p, near, c) for m in latents]
        return self._move(bias, p, steps, c)

    def _paper(self, bias: list[float], p: list[float], r: list[float], c: float) -> list[float]:
        new = list(bias)
        for m in range(len(bias)):
            if p[m] > self.target[m]:
                new[m] = max(bias[m] - self.gamma_minus * r[m], -c)
            if p[m] < self.epsilon:
                alive = [r[j] for j in self._members(m) if r[j] > 0]
                s_k = sum(alive) / len(alive) if alive else 0.0
                new[m] = min(bias[m] + self.gamma_plus * s_k, 0.0)
        return new

    def _step_of_group(self, m: int, p: list[float], near: list[float], c: float) -> float:
        """In units of c: by a fixed rate, or by the slope of the group's frequency."""
        members = self._members(m)
        mean = sum(p[j] / self.target[j] for j in members) / len(members)
        e_k = min(max(math.log(mean), -2.0), 2.0) if mean > 0 else -2.0
        fired_near = sum(near[j] for j in members)
        if self.rule == "group_mean" or fired_near == 0:
            return 0.3 * self.gamma_minus * e_k
        slope = fired_near / sum(p[j] * self.band[j] / c for j in members)
        return min(max(e_k / slope, -2 * self.gamma_minus), 2 * self.gamma_minus)

    def _next_band(self, m: int, p: list[float], near: list[float], c: float) -> float:
        members = self._members(m)
        width = sum(self.band[j] / c for j in members) / len(members)
        fired, fired_near = sum(p[j] for j in members), sum(near[j] for j in members)
        if width == 0 or fired == 0:
            width = 0.2 * self.gamma_minus
        elif fired_near == 0:
            width *= 2
        else:
            width *= min(max(0.25 * fired / fired_near, 0.5), 2.0)
        return min(width, 1.0) * c

    def _move(self, bias: list[float], p: list[float], steps: list[float], c: float) -> list[float]:
        new = list(bias)
        for m in range(len(bias)):
            over = p[m] / self.target[m] / self.cap
            u_m = min(max(math.log(over), 0.0), 3.0) if over > 0 else 0.0
            new[m] -= c * (steps[m] + 0.3 * self.gamma_minus * u_m)
            if p[m] < self.epsilon and self.silent[m] * self.target[m] >= 5:
                new[m] += self.gamma_plus * c
            new[m] = min(max(new[m], -c), 0.0)
        return new

    def _members(self, m: int) -> list[int]:
        return [j for j in range(len(self.group)) if self.group[j] == self.group[m]]
