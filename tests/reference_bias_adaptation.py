"""The paper's bias adaptation (arXiv 2506.14002), line by line, slow on purpose.

Buffers every pre-activation, loops over neurons and groups, float64 throughout.
"""

import torch


class ReferenceBiasAdaptation:
    def __init__(self, group, target, gamma_minus, gamma_plus, epsilon, period):
        self.group = group.tolist()
        self.target = target.tolist()
        self.gamma_minus, self.gamma_plus = gamma_minus, gamma_plus
        self.epsilon, self.period = epsilon, period
        self.buffer = []
        self.steps = 0
        self.counts = [0] * len(self.target)

    def step(self, bias, y, b_min):
        """y: (n, M) pre-activations, bias included; bias: list of M floats."""
        self.buffer.append(y.double())
        self.steps += 1
        for m in range(len(bias)):
            for value in y[:, m].tolist():
                if value > 0:
                    self.counts[m] += 1
        if self.steps % self.period != 0:
            return bias
        samples = torch.cat(self.buffer)
        n = len(samples)
        p, r = [], []
        for m in range(len(bias)):
            active = 0
            largest = 0.0
            for value in samples[:, m].tolist():
                if value > 0:
                    active += 1
                largest = max(largest, value)
            p.append(active / n)
            r.append(largest)
        new = list(bias)
        for m in range(len(bias)):
            if p[m] > self.target[m]:
                new[m] = max(bias[m] - self.gamma_minus * r[m], b_min)
            if p[m] < self.epsilon:
                alive = [
                    r[j] for j in range(len(bias)) if self.group[j] == self.group[m] and r[j] > 0
                ]
                s_k = sum(alive) / len(alive) if alive else 0.0
                new[m] = min(bias[m] + self.gamma_plus * s_k, 0.0)
        self.buffer, self.counts = [], [0] * len(bias)
        return new
