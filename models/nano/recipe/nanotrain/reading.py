"""Training forward of the decoder: a page's visual tokens once, both prompts after it.

Runs over the modules of ocr2cli.model; knows nothing about data. The two texts do not see each
other and stand at the same positions, so each is what the decoder meets when it reads.

Not all visual tokens need to be there: cells without text may be left out, each kept token stands
at its true position. That makes a page several times cheaper while the decoder learns to read.

Letters: B pages, P = 1 + kept visual tokens, T tokens of a text, L = P + all texts, D width, H
heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanotrain.cells import MOST_ROWS, SLOTS
from nanotrain.characters import NUM_CLASSES
from nanotrain.vocabulary import EOS_ID, NEWLINE_ID
from ocr2cli.model.decoder import Decoder
from ocr2cli.model.layers import rotate

GUIDED = (1, 2, 3, 4, 5, 6)  # layers whose head 0 must look at the cell of the next character
LOCATED = (1, 2, 3, 4, 5)  # layers after which texts must know the place of the next character
IN_ROWS = (3, 4, 5)  # those after which they must know its row of slots and its slot
# Layers whose head TRACKED must look at what was written of the text's own line, and the others at
# that cell: two lines are more than one head can carry.
TRACKING, TRACKED = (4, 5), 1
# Layers with a head for each half of a cell: it must look at the cell only while the next
# character stands in its half, else at BOS. What it brings along is never the other line's.
HALVING, HALF_OF = (5, 6), {2: 0, 3: 1}
LEAST_SHARE = 2e-9  # of attention; below it nothing is learned from a logarithm
ROOM_STEP = 128  # the rows of an expert are rounded up to a multiple
FUSED = ("cuda",)  # devices whose library kernels beat products written out
UNPACKED = 1  # layer after which a visual token must say what it holds, slot by slot
MAPPED = (0, 1)  # layers after which visual tokens must know their own place
# Weight of the targets at a line's turn: one wrong there costs a line, read twice or left out.
TURNS = 3.0


class ReadHeads(nn.Module):
    """Training only: where on the page a token is, or the next character is; (x, y) in 0..1, in
    which slot of its cell and in which row of slots of the page; what a visual token holds."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.place_head = nn.ModuleList(nn.Linear(width, 2) for _ in range(layers))
        self.slot_head = nn.ModuleList(nn.Linear(width, SLOTS) for _ in range(layers))
        self.row_head = nn.ModuleList(nn.Linear(width, MOST_ROWS) for _ in range(layers))
        self.unpack_head = nn.Linear(width, SLOTS * NUM_CLASSES)
        self.beside_head = nn.Linear(width, SLOTS // 2 * NUM_CLASSES)


@dataclass
class Text:
    """ids, targets: int64 [B, T], target -1 where nothing is learned. cells: int64 [B, T], the
    visual token to look at or -1; slots: int64 [B, T], where in it; rows: int64 [B, T], in which
    row of slots. places: float [B, T, 2]."""

    ids: Tensor
    targets: Tensor
    cells: Tensor
    slots: Tensor
    rows: Tensor
    places: Tensor


@dataclass
class ReadLosses:
    """Means over their tokens. text, guide, place, slot, row, line, unpack, beside, balance: the
    losses of the next character, of where head 0 looks, of its place on the page, its slot in the
    cell and its row of the page, of where head TRACKED looks, of what visual tokens hold, of what
    stands in the cell on the next character's line, of the experts' load. right: share of targets
    with the highest logit; turned: the same of those at a line's turn; looked: float [6], attention
    of the guided heads on the right cell, by layer; guessed: int64 [B, all texts], the likeliest
    next id where there is a target, else -1."""

    text: Tensor
    guide: Tensor
    place: Tensor
    slot: Tensor
    row: Tensor
    line: Tensor
    unpack: Tensor
    beside: Tensor
    balance: Tensor
    right: Tensor
    turned: Tensor
    looked: Tensor
    guessed: Tensor

    def total(self) -> Tensor:
        """What training descends."""
        pointing = 0.3 * self.guide + 2.0 * self.place + 0.2 * self.slot + 0.2 * self.row
        holding = self.unpack + 0.5 * self.beside
        return self.text + pointing + 0.1 * self.line + holding + 0.01 * self.balance


def read(
    decoder: Decoder,
    heads: ReadHeads,
    visual_BVD: Tensor,
    kept_BV: Tensor,
    visual_places_BV2: Tensor,
    slots_BVS: Tensor,
    texts: list[Text],
    *,
    num_visual: int,
    noise: float = 0.03,
    own: float = 0.0,
) -> ReadLosses:
    """kept: int64 [B, V], which of the page's num_visual tokens each visual row is, rising. slots:
    uint8 [B, V, 16], their labels; all 0 where nothing is to be said. The cells of texts count kept
    rows. noise: share of input ids that are wrong at random; own: share that is what the decoder
    would have written itself."""
    if own:
        with torch.no_grad():
            first = read(
                decoder,
                heads,
                visual_BVD,
                kept_BV,
                visual_places_BV2,
                slots_BVS,
                texts,
                num_visual=num_visual,
                noise=noise,
            )
        texts = self_fed(texts, first.guessed, own)
    batch, visual, _ = visual_BVD.shape
    prefix = visual + 1
    bos = decoder.embed.weight[0].expand(batch, 1, -1)
    inputs = [_with_noise(text, noise) for text in texts]
    x = torch.cat([bos, visual_BVD, *[decoder.embed(ids) for ids in inputs]], dim=1)
    lengths = [text.ids.shape[1] for text in texts]
    device = x.device
    start = num_visual + 1
    text_positions = torch.cat([torch.arange(start, start + n, device=device) for n in lengths])
    positions = torch.cat(
        [torch.zeros_like(kept_BV[:, :1]), kept_BV + 1, text_positions.expand(batch, -1)], dim=1
    )
    cos, sin = decoder.rotary.at(positions)
    turn = cos[:, None], sin[:, None]
    parts = [prefix, *lengths]
    same_line = [_same_line(text.ids) for text in texts]
    aims = torch.cat([text.cells for text in texts], dim=1)
    in_cells = torch.cat([text.slots for text in texts], dim=1)
    in_rows = torch.cat([text.rows for text in texts], dim=1)
    guides: list[Tensor] = []
    looked: list[Tensor] = []
    places: list[Tensor] = []
    slots: list[Tensor] = []
    rows: list[Tensor] = []
    lines: list[Tensor] = []
    besides: list[Tensor] = []
    balances: list[Tensor] = []
    for index, layer in enumerate(decoder.layers):
        at_cell: dict[int, int | None] = {0: None}  # head -> for which half of it, None for both
        if index in TRACKING:
            at_cell |= {head: None for head in range(layer.attn.num_heads) if head != TRACKED}
        if index in HALVING:
            at_cell |= HALF_OF
        mixed, maps = _attend(
            layer.attn, layer.attn_norm(x), turn, parts, watched=[*at_cell, TRACKED]
        )
        x = x + mixed
        if index in GUIDED:
            for head, half in at_cell.items():
                chance = torch.cat(
                    [
                        _chance_on_cell(rows[head], text, half)
                        for rows, text in zip(maps, texts, strict=True)
                    ],
                    dim=1,
                )
                guides.append(-mean_where(chance, aims >= 0))
                if head == 0:
                    looked.append(mean_where(chance.detach().exp(), aims >= 0))
        if index in TRACKING:
            lines += [
                _off_the_line(rows[TRACKED], same, text.targets >= 0)
                for rows, same, text in zip(maps, same_line, texts, strict=True)
            ]
        y = layer.ffn_norm(x)
        if hasattr(layer.mlp, "router"):
            out, balance = mixture(layer.mlp, y)
            balances.append(balance)
        else:
            out = layer.mlp(y)
        x = x + out
        if index in MAPPED:
            guess = heads.place_head[index](x[:, 1:prefix])
            places.append(F.smooth_l1_loss(guess.float(), visual_places_BV2, beta=0.05))
        if index == UNPACKED:
            unpack = _unpacked(heads.unpack_head(x[:, 1:prefix]), slots_BVS.long())
        if index in LOCATED:
            guess = heads.place_head[index](x[:, prefix:]).float()
            aim = torch.cat([text.places for text in texts], dim=1)
            off = F.smooth_l1_loss(guess, aim, beta=0.05, reduction="none").mean(-1)
            places.append(mean_where(off, aims >= 0))
        if index in IN_ROWS:
            # A place of a page is too coarse to part two lines of small type: they share a cell.
            for named, found, aim in (
                (heads.slot_head, slots, in_cells),
                (heads.row_head, rows, in_rows),
            ):
                guess = named[index](x[:, prefix:]).float().transpose(1, 2)
                found.append(F.cross_entropy(guess, aim, ignore_index=-1))
        if index in TRACKING:
            besides.append(_beside(heads.beside_head(x[:, prefix:]), slots_BVS, aims, in_cells))
    h = decoder.norm(x[:, prefix:])
    targets = torch.cat([text.targets for text in texts], dim=1)
    learned = targets >= 0
    guesses = decoder.lm_head(h).float()
    best = guesses.detach().argmax(-1)
    wrong = F.cross_entropy(guesses.transpose(1, 2), targets, ignore_index=-1, reduction="none")
    turns = torch.cat([at_turn(text) for text in texts], dim=1)
    return ReadLosses(
        mean_where(wrong, torch.where(turns, TURNS, 1.0) * learned),
        torch.stack(guides).mean(),
        torch.stack(places).mean(),
        torch.stack(slots).mean(),
        torch.stack(rows).mean(),
        torch.stack(lines).mean(),
        unpack,
        torch.stack(besides).mean(),
        torch.stack(balances).mean(),
        mean_where((best == targets).float(), learned),
        mean_where((best == targets).float(), learned & turns),
        torch.stack(looked),
        best.where(learned, -1),
    )


def at_turn(text: Text) -> Tensor:
    """bool [B, T]: targets that end a line or the text, or are the first two of a line."""
    begins = text.ids == NEWLINE_ID
    follows = F.pad(begins[:, :-1], (1, 0))
    return (text.targets == NEWLINE_ID) | (text.targets == EOS_ID) | begins | follows


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of the values where `counted` says so; their number is never asked for, so that a device
    need not be waited for. Values elsewhere must be finite."""
    return (values * counted).sum() / counted.sum()


def self_fed(texts: list[Text], guessed_BT: Tensor, share: float) -> list[Text]:
    """The texts with a share of their input ids as the decoder itself would have written them, so
    that it meets its own mistakes, a wrong line's first characters among them. Targets stay."""
    fed = []
    parts = guessed_BT.split([text.ids.shape[1] for text in texts], dim=1)
    for text, guessed in zip(texts, parts, strict=True):
        ids = text.ids.clone()
        is_own = (guessed >= 0) & (torch.rand(ids.shape, device=ids.device) < share)
        ids[:, 1:] = torch.where(is_own[:, :-1], guessed[:, :-1], ids[:, 1:])
        fed.append(replace(text, ids=ids))
    return fed


def _with_noise(text: Text, noise: float) -> Tensor:
    if not noise:
        return text.ids
    is_noise = torch.rand(text.ids.shape, device=text.ids.device) < noise
    # Only characters of the text are disturbed, never the prompt or a padding.
    is_noise &= text.targets >= 0
    return torch.where(is_noise, torch.randint_like(text.ids, 48, 143), text.ids)


def _attend(
    attn: nn.Module, y: Tensor, turn: tuple[Tensor, Tensor], parts: list[int], watched: list[int]
) -> tuple[Tensor, list[dict[int, Tensor]]]:
    """Attention written out: at these lengths faster on a CPU than the fused kernel's backward.

    parts: rows of the prefix and of each text; every part sees the prefix and itself, causally.
    Returns (output, how much the watched heads of each text look at what, [B, T, P + T])."""
    qkv = attn.qkv(y).view(*y.shape[:2], 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    q, k = rotate(q, *turn) * attn.head_dim**-0.5, rotate(k, *turn)
    mixed, maps = [], []
    cut = (x.split(parts, dim=2) for x in (q, k, v))
    for index, (q_BHTC, k_BHTC, v_BHTC) in enumerate(zip(*cut, strict=True)):
        if index:
            k_BHTC = torch.cat((k[:, :, : parts[0]], k_BHTC), dim=2)
            v_BHTC = torch.cat((v[:, :, : parts[0]], v_BHTC), dim=2)
        rows, columns = q_BHTC.shape[2], k_BHTC.shape[2]
        if y.device.type in FUSED:
            # The heads that are not watched never write their map down.
            visible = torch.ones(rows, columns, dtype=torch.bool, device=q.device)
            visible = visible.tril(columns - rows)
            same = (x.to(v.dtype) for x in (q_BHTC, k_BHTC))
            mixed.append(
                F.scaled_dot_product_attention(*same, v_BHTC, attn_mask=visible, scale=1.0)
            )
            if index:
                logits = q_BHTC[:, watched] @ k_BHTC[:, watched].transpose(-1, -2)
                shares = logits.float().masked_fill(~visible, -30000.0).softmax(-1)
                maps.append(dict(zip(watched, shares.unbind(1), strict=True)))
            continue
        logits = q_BHTC @ k_BHTC.transpose(-1, -2)
        later = torch.full((rows, columns), -30000.0, dtype=logits.dtype, device=q.device)
        logits += later.triu(columns - rows + 1)  # in place: a map is large, and fresh memory slow
        shares = logits.softmax(-1, dtype=q.dtype)
        mixed.append(shares @ v_BHTC)
        if index:
            heads = shares.unbind(1)
            maps.append({head: heads[head] for head in watched})
    return attn.out(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2)), maps


def _chance_on_cell(shares_BTL: Tensor, text: Text, half: int | None) -> Tensor:
    """Log of one head's attention on the right cell, [B, T], or on BOS where the next character
    does not stand in the head's half of it; of no meaning where there is no cell."""
    cells_BT = text.cells
    if half is not None:
        cells_BT = cells_BT.where(text.slots // (SLOTS // 2) == half, -1)
    return _log(shares_BTL.gather(2, (cells_BT + 1)[..., None])[..., 0].float())


def _log(shares: Tensor) -> Tensor:
    return shares.clamp(min=LEAST_SHARE).log()


def _unpacked(logits_BVN: Tensor, slots_BVS: Tensor) -> Tensor:
    """Mean loss of the slots of tokens that hold anything. Two lines in one cell crowd their token,
    and the text's loss alone hardly teaches the decoder to part them."""
    wrong_BVS = _costs(logits_BVN, slots_BVS)
    holds_BV = (slots_BVS > 0).any(-1)
    return (wrong_BVS.mean(-1) * holds_BV).sum() / holds_BV.sum().clamp(min=1)


def _beside(logits_BTN: Tensor, slots_BVS: Tensor, cells_BT: Tensor, in_cells_BT: Tensor) -> Tensor:
    """Mean loss of naming what the next character's cell holds in that character's row of slots:
    whoever can do that has taken the right one of two lines out of the cell."""
    slots_BTS = slots_BVS.long().gather(
        1, cells_BT.clamp(min=0)[..., None].expand(-1, -1, slots_BVS.shape[-1])
    )
    half = slots_BTS.shape[-1] // 2
    is_lower = (in_cells_BT >= half)[..., None]
    aim_BTS = torch.where(is_lower, slots_BTS[..., half:], slots_BTS[..., :half])
    wrong_BTS = _costs(logits_BTN, aim_BTS)
    return mean_where(wrong_BTS.mean(-1), (cells_BT >= 0) & (aim_BTS > 0).any(-1))


def _costs(logits_BTN: Tensor, aim_BTS: Tensor) -> Tensor:
    """[B, T, S]: cross-entropy of S characters named beside each other in one row of logits."""
    logits = logits_BTN.float().reshape(aim_BTS.numel(), -1)
    return F.cross_entropy(logits, aim_BTS.flatten(), reduction="none").view_as(aim_BTS)


def _same_line(ids_BT: Tensor) -> Tensor:
    """bool [B, T, T]: whether a token belongs to the printed line of another; the line break that
    was written last begins a line."""
    line_BT = (ids_BT == NEWLINE_ID).cumsum(1)
    return line_BT[:, :, None] == line_BT[:, None, :]


def _off_the_line(shares_BTL: Tensor, same_BTT: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean of -log of a head's attention on what was written of its own line. Which of two lines in
    one row of cells is being read shows in many characters together better than in any one."""
    texts_BTT = shares_BTL[..., -same_BTT.shape[-1] :] * same_BTT
    return -mean_where(_log(texts_BTT.sum(-1, dtype=torch.float32)), counted_BT)


def mixture(mlp: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture of experts with its balance loss: experts * sum(share of tokens * mean
    chance)."""
    flat = x.flatten(0, -2)
    with torch.autocast(x.device.type, enabled=False):
        chance = F.linear(flat.float(), mlp.router.weight.float()).softmax(-1)
    weights, experts = chance.topk(mlp.router.experts_per_token, dim=-1)
    count = chance.shape[-1]
    is_chosen = torch.zeros_like(chance).scatter(1, experts, 1.0)
    share = is_chosen.sum(0) / experts.numel()
    balance = count * (share * chance.mean(0)).sum()
    if x.device.type in FUSED:
        return _all_experts(mlp, x, chance * is_chosen), balance
    order, slots, room = _seats(experts, count)
    rows = order // experts.shape[1]
    # One product over all experts with rounded sizes: a CPU compiles a kernel for each new shape.
    seated = flat.new_zeros(count * room, flat.shape[-1]).index_copy(
        0, slots, flat.index_select(0, rows)
    )
    gate, up = (seated.view(count, room, -1) @ mlp.experts_gate_up.transpose(1, 2)).chunk(2, dim=-1)
    found = ((F.silu(gate) * up) @ mlp.experts_down.transpose(1, 2)).flatten(0, 1)
    scaled = (
        found.index_select(0, slots).float() * weights.flatten().index_select(0, order)[:, None]
    )
    routed = torch.zeros_like(flat, dtype=torch.float32).index_add(0, rows, scaled)
    return (routed.to(x.dtype) + mlp.shared(flat)).view_as(x), balance


def _all_experts(mlp: nn.Module, x: Tensor, weights_NE: Tensor) -> Tensor:
    """Every expert on every row, scaled by its weight or by 0: four times the products, but nano's
    are small, and no number has to come back from the device."""
    flat = x.flatten(0, -2)
    gate, up = (flat @ mlp.experts_gate_up.transpose(1, 2)).chunk(2, dim=-1)
    found = (F.silu(gate) * up) @ mlp.experts_down.transpose(1, 2)
    routed = (found.float() * weights_NE.T[..., None]).sum(0)
    return (routed.to(x.dtype) + mlp.shared(flat)).view_as(x)


def _seats(experts_Nk: Tensor, count: int) -> tuple[Tensor, Tensor, int]:
    """(choices sorted by expert, seat of each among count * room, room)."""
    chosen = experts_Nk.flatten()
    order = chosen.argsort(stable=True)
    sizes = torch.bincount(chosen, minlength=count)
    room = -(-int(sizes.max()) // ROOM_STEP) * ROOM_STEP
    starts = sizes.cumsum(0) - sizes
    of = chosen.index_select(0, order)
    slots = of * room + torch.arange(len(of), device=of.device) - starts.index_select(0, of)
    return order, slots, room
