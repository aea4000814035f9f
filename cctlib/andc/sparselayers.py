"""Forms of a sparse linear layer, for inference: same inputs, same outputs, other ways to multiply.

    dense    torch's linear layer, zeros and all
    bags     weighted bags of embeddings: each output adds up those rows of the transposed tokens that its
             weights name, by the kernel behind `embedding_bag`, which runs along the tokens
    csr      torch's product of a CSR matrix with the transposed tokens
    blocks   outputs with similar inputs in groups; each group multiplies the union of its inputs, densely

Which is fastest depends on the machine, the density and the batch: `compact.py` measures. Written in torch
alone, they run on every device that has the kernels.
"""

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cctlib.errors import UserError

FORMS = ("dense", "bags", "csr", "blocks")
REPEATED = 32  # images whose tokens one call of `Bags` takes; its indices are repeated for so many
GROUPS = (2, 4, 8, 16)  # numbers of groups that `Blocks` considers
PER_GROUP = 1 / 32  # what a group costs beside its product, as a share of the dense product


class Bags(nn.Module):
    """A sparse linear layer as weighted bags of embeddings; for inference.

    The transposed tokens of an image are a table [input, token]; output o is the sum of the rows that its
    weights name. A batch is one tall table, [image * input, token], so indices and weights are repeated for
    `images` images: memory, for fewer calls. The result is a transposed view; GELU keeps it one, and a second
    such layer finds its table ready.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "output input"], bias: Float[Tensor, "output"], images: int = 1):
        super().__init__()
        self.outputs, self.inputs = weight.shape
        rows, columns = weight.nonzero(as_tuple=True)
        ends = torch.bincount(rows, minlength=self.outputs).cumsum(0)
        image = torch.arange(images, device=weight.device)[:, None]
        starts = (image * len(rows) + ends - torch.bincount(rows, minlength=self.outputs)).flatten()
        self.register_buffer("starts", starts.int())
        self.register_buffer("columns", (image * self.inputs + columns).flatten().int())
        self.register_buffer("values", weight[rows, columns].detach().repeat(images))
        self.register_buffer("bias", bias.detach().clone()[:, None])
        self.images, self.entries = images, len(rows)

    def forward(self, x: Float[Tensor, "*image token node"]) -> Float[Tensor, "*image token output"]:
        if x.ndim != 3:
            return self(x.reshape(-1, *x.shape[-2:])).reshape(*x.shape[:-1], self.outputs)
        table = x.to(self.values.dtype).transpose(1, 2).contiguous()
        parts = [self._sums(part) for part in table.split(self.images)]
        sums = parts[0] if len(parts) == 1 else torch.cat(parts)
        return sums.view(len(x), self.outputs, -1).add_(self.bias).transpose(1, 2)

    def _sums(self, table: Float[Tensor, "image node token"]) -> Float[Tensor, "sum token"]:
        rows, columns, starts, values = table.view(-1, table.shape[2]), self.columns, self.starts, self.values
        if len(table) < self.images:
            columns, values = (of_all[: len(table) * self.entries] for of_all in (columns, values))
            starts = starts[: len(table) * self.outputs]
        # F.embedding_bag without its checks, which take as long as a small product does; mode 0 adds up.
        return torch.embedding_bag(rows, columns, starts, False, 0, False, values)[0]


class CSR(nn.Module):
    """A sparse linear layer by torch's product of a CSR matrix with the transposed tokens; for inference."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "output input"], bias: Float[Tensor, "output"]):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls CSR a beta feature
            self.register_buffer("weight", weight.detach().to_sparse_csr())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, x: Float[Tensor, "*token node"]) -> Float[Tensor, "*token output"]:
        flat = x.to(self.bias.dtype).reshape(-1, x.shape[-1])
        return ((self.weight @ flat.T).T + self.bias).view(*x.shape[:-1], -1)


class Blocks(nn.Module):
    """A sparse linear layer as a few dense ones, each from the inputs that a group of outputs shares."""

    rows: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "output input"], bias: Float[Tensor, "output"]):
        super().__init__()
        self.groups = best_groups(weight != 0)
        self.outputs = len(weight)
        for number, (rows, columns) in enumerate(self.groups):
            self.register_buffer(f"weight{number}", weight.detach()[rows][:, columns].contiguous())
            self.register_buffer(f"columns{number}", columns)
        self.register_buffer("rows", torch.cat([rows for rows, _ in self.groups]))
        self.register_buffer("bias", bias.detach().clone()[:, None])

    def forward(self, x: Float[Tensor, "*token node"]) -> Float[Tensor, "*token output"]:
        table = x.to(self.bias.dtype).reshape(-1, x.shape[-1]).T.contiguous()
        sums = self.bias.repeat(1, table.shape[1])
        products = [
            getattr(self, f"weight{number}") @ table[getattr(self, f"columns{number}")]
            for number in range(len(self.groups))
        ]
        sums.index_add_(0, self.rows, torch.cat(products))
        return sums.T.view(*x.shape[:-1], self.outputs)


def best_groups(kept: Bool[Tensor, "output input"]) -> list[tuple[Tensor, Tensor]]:
    """The cheapest grouping of outputs, as (rows, columns): counted are products, and something a group."""
    choices = [group_rows(kept, groups) for groups in GROUPS]

    def cost(groups: list[tuple[Tensor, Tensor]]) -> float:
        products = sum(len(rows) * len(columns) for rows, columns in groups)
        return products + len(groups) * PER_GROUP * kept.numel()

    return min(choices, key=cost)


def group_rows(kept: Bool[Tensor, "output input"], groups: int) -> list[tuple[Tensor, Tensor]]:
    """Rows in groups of equal size, each with the union of its columns; rows without entries are in none.

    Greedy: a group opens with the row that has most entries, and takes the row that adds fewest columns, of
    these the one that shares most, until it is full.
    """
    matrix, columns = kept.float(), kept.shape[1]
    entries = matrix.sum(1)
    left = entries > 0
    size, found = -(-int(left.sum()) // groups), []
    while left.any():
        union = torch.zeros_like(matrix[0])
        members: list[int] = []
        while left.any() and len(members) < size:
            shared = matrix @ union
            score = columns * (shared - entries) + shared if members else entries
            best = int(score.masked_fill(~left, -torch.inf).argmax())
            members.append(best)
            union = torch.maximum(union, matrix[best])
            left[best] = False
        found.append((torch.tensor(members, device=kept.device), union.nonzero().flatten()))
    return found


def make_form(form: str, module: nn.Linear, images: int = 1) -> nn.Module:
    """`module` in one of FORMS, with the same outputs. Raises `UserError` for a form that does not exist."""
    if form not in FORMS:
        raise UserError(f"form {form!r} of a sparse layer is not known; use one of {', '.join(FORMS)}")
    if form == "dense" or not module.weight.count_nonzero():
        return module
    if form == "bags":
        return Bags(module.weight, module.bias, min(images, REPEATED))
    return (CSR if form == "csr" else Blocks)(module.weight, module.bias)
