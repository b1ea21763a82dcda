"""Vectors as sparse combinations of others."""

from __future__ import annotations

import torch
from torch import Tensor


def matching_pursuit(targets: Tensor, atoms: Tensor, k: int, *, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return, for each target, the atoms and coefficients of a sparse combination near to it.

    Orthogonal matching pursuit, all targets at once: the atom of the largest cosine with what is left of a target is
    taken, the target is projected onto all atoms taken so far, until there are ``k`` or nothing is left.

    Args:
        targets: ``[targets, width]``.
        atoms: ``[atoms, width]``; one of length zero is never taken.
        k: most atoms of a combination; no more than there are, or than the width, are of use.
        tolerance: relative length below which nothing is left.

    Returns:
        Indices int64 ``[targets, k]`` and coefficients float32 of the same shape; unused places have coefficient 0.

    Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit" (1993).
    """
    work = targets.float()
    points = atoms.float()
    lengths = points.norm(dim=1)
    unit = points / lengths.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
    k = min(k, len(atoms), targets.shape[1])
    count = len(work)
    chosen = torch.zeros(count, k, dtype=torch.int64, device=work.device)
    basis = torch.zeros(count, k, work.shape[1], device=work.device)
    triangle = torch.eye(k, device=work.device).repeat(count, 1, 1)
    along = torch.zeros(count, k, device=work.device)
    left = work.clone()
    wanted = work.norm(dim=1)
    for step in range(k):
        scores = (left @ unit.T).abs_()
        scores[:, lengths == 0] = -1.0
        scores.scatter_(1, chosen[:, :step], -1.0)
        chosen[:, step] = scores.argmax(1)
        atom = points[chosen[:, step]]
        rest, parts = atom, torch.zeros(count, step, device=work.device)
        for _ in range(2):  # once more, since one projection leaves rounding errors that grow
            part = (basis[:, :step] @ rest.unsqueeze(2)).squeeze(2)
            rest = rest - (part.unsqueeze(1) @ basis[:, :step]).squeeze(1)
            parts = parts + part
        length = rest.norm(dim=1)
        usable = (left.norm(dim=1) > tolerance * wanted) & (length > tolerance * atom.norm(dim=1))
        direction = torch.where(usable.unsqueeze(1), rest / length.clamp(min=1e-30).unsqueeze(1), 0.0)
        basis[:, step] = direction
        triangle[:, :step, step] = torch.where(usable.unsqueeze(1), parts, 0.0)
        triangle[:, step, step] = torch.where(usable, length, 1.0)
        along[:, step] = (direction * left).sum(1)
        left = left - along[:, step].unsqueeze(1) * direction
    coefficients = torch.linalg.solve_triangular(triangle, along.unsqueeze(2), upper=True).squeeze(2)
    return chosen, coefficients
