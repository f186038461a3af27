"""A plain PyTorch loop, and the three lines that make it one of a population.

python -m coordinator --n 2 --p 0.05          # once
python examples/plain.py tcp://127.0.0.1:5555    # once for each member
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import washp2p


def main(coordinator: str) -> None:
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    test, train = random_split(data, [360, 1437], torch.Generator().manual_seed(0))

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    model.append(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=True)

    with washp2p.join(coordinator, model, optimizer) as member:  # 1: be one of a population
        for _ in range(10):
            for inputs, targets in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()  # and a round
        own = accuracy(model, test)
        model.load_state_dict(member.average())  # 2: all members, averaged
    print(f"member {member.id}: {own:.1f} %, averaged: {accuracy(model, test):.1f} %")


@torch.no_grad()
def accuracy(model: nn.Module, data: torch.utils.data.Dataset) -> float:
    inputs, targets = next(iter(DataLoader(data, batch_size=len(data))))
    return 100 * (model(inputs).argmax(1) == targets).float().mean().item()


if __name__ == "__main__":
    main(*sys.argv[1:])
