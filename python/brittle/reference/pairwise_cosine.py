"""What pairwise cosine similarity means, in float64."""

import torch
from torch import Tensor


def directions(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows at length 1, in float64, and which of them have no direction.

    Returns:
        The unit rows ``[N, D]`` (zeros where there is none), and bool ``[N]`` twice: rows that are zero, and
        rows that hold a NaN or an infinity.
    """
    x = x.double()
    lost = ~x.isfinite().all(1)
    x = torch.where(lost[:, None], 0.0, x)
    # The largest element first: the squares of very large and very small numbers are none.
    largest = x.abs().amax(1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    zero = largest[:, 0] == 0
    x = x / torch.where(zero[:, None], 1.0, largest)
    norm = x.square().sum(1, keepdim=True).sqrt()
    return x / torch.where(zero[:, None], 1.0, norm), zero, lost


def pairwise_cosine(a: Tensor, b: Tensor | None = None) -> Tensor:
    """The cosine of the angle between every row of ``a`` and every row of ``b``, float64 ``[N, M]``.

    A zero row gives 0 with every row, itself included; a row that holds a NaN or an infinity gives NaN with
    every row. Of every other row, the cosine with itself is 1.
    """
    rows, _, lost_rows = directions(a)
    columns, zero, lost_columns = (rows, _, lost_rows) if b is None else directions(b)
    cosines = (rows @ columns.T).clamp(-1.0, 1.0)
    if b is None:
        cosines.fill_diagonal_(1.0)
        cosines[zero, zero] = 0.0
    cosines[lost_rows] = torch.nan
    cosines[:, lost_columns] = torch.nan
    return cosines


def pairwise_cosine_topk(a: Tensor, b: Tensor | None = None, k: int = 1) -> tuple[Tensor, Tensor]:
    """The k largest cosines of each row of ``a``, float64 ``[N, k]``, and whose they are, int64 ``[N, k]``.

    Descending; of equal cosines the lower index first. Without ``b``, a row is not its own neighbour. Rows
    that hold a NaN or an infinity are nobody's neighbours and have none: NaN and index -1 stand for one
    that is missing.
    """
    cosines = pairwise_cosine(a, b)
    if b is None:
        cosines.fill_diagonal_(torch.nan)
    missing = cosines.isnan()
    values, indices = cosines.masked_fill(missing, -torch.inf).sort(dim=1, descending=True, stable=True)
    values, indices = values[:, :k], indices[:, :k]
    found = values != -torch.inf
    return values.masked_fill(~found, torch.nan), indices.masked_fill(~found, -1)
