"""A training script in the style of timm's `train.py`: flags, mixed precision, gradients
accumulated and clipped, a schedule, validation. Lines marked `washp2p` make it a member.

python -m coordinator --n 2 --p 0.05
python examples/timm_style.py --washp2p tcp://127.0.0.1:5555 --amp --grad-accum-steps 2
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import washp2p  # washp2p


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--washp2p", metavar="ADDRESS", help="the population's coordinator")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--grad-accum-steps", type=int, default=1)
    parser.add_argument("--clip-grad", type=float, default=5.0)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--torchcompile", metavar="BACKEND")
    parser.add_argument("--output", type=Path, help="where to save the final state dict")
    return parser.parse_args()


def create_model() -> nn.Module:
    def block(channels: int, out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]

    stages = [*block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 64)]
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def create_loaders(batch_size: int) -> tuple[DataLoader, DataLoader]:
    images, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    data = TensorDataset(inputs, torch.tensor(labels))
    test, train = random_split(data, [360, 1437], torch.Generator().manual_seed(0))
    train_loader = DataLoader(train, batch_size, shuffle=True, drop_last=True)
    return train_loader, DataLoader(test, 360)


def main() -> None:
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_loader, eval_loader = create_loaders(args.batch_size)
    model = create_model().to(device)
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay}, {"params": no_decay, "weight_decay": 0.0}],
        lr=args.lr,
        weight_decay=args.weight_decay,
    )
    updates = args.epochs * (len(train_loader) // args.grad_accum_steps)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=updates, pct_start=args.warmup_epochs / args.epochs
    )
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp)
    forward = torch.compile(model, backend=args.torchcompile) if args.torchcompile else model
    loss_fn = nn.CrossEntropyLoss(label_smoothing=args.smoothing)

    member = None
    if args.washp2p:
        member = washp2p.attach(model, optimizer, args.washp2p, scaler=scaler)  # washp2p
    for epoch in range(args.epochs):
        train_one_epoch(forward, train_loader, optimizer, scheduler, scaler, loss_fn, args, device)
        top1 = validate(model, eval_loader, device)
        print(f"epoch {epoch}: top1 {top1:.2f}", flush=True)
        if member is not None:
            member.report(epoch=epoch, top1=top1)  # washp2p: a line in the run's metrics.jsonl
    if member is not None:
        model.load_state_dict(member.average())  # washp2p
        member.close()  # washp2p
        print(f"averaged: top1 {validate(model, eval_loader, device):.2f}")
    if args.output:
        torch.save(model.state_dict(), args.output)


def train_one_epoch(model, loader, optimizer, scheduler, scaler, loss_fn, args, device) -> None:
    model.train()
    for index, (inputs, targets) in enumerate(loader):
        last = (index + 1) % args.grad_accum_steps == 0
        with torch.autocast(device.type, enabled=args.amp) if args.amp else nullcontext():
            loss = loss_fn(model(inputs.to(device)), targets.to(device)) / args.grad_accum_steps
        scaler.scale(loss).backward()
        if last:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_grad)
            scaler.step(optimizer)  # and a round, if the step is skipped, too
            scaler.update()
            optimizer.zero_grad()
            scheduler.step()


@torch.no_grad()
def validate(model: nn.Module, loader: DataLoader, device: torch.device) -> float:
    model.eval()
    right = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in loader)
    return 100 * right / len(loader.dataset)


if __name__ == "__main__":
    main()
