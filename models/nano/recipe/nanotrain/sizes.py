"""nano's sizes, and how its weights start. The one place that says them for training."""

from __future__ import annotations

import torch
from torch import nn

from ocr2cli.model.config import DecoderConfig, ModelConfig, QueryEncoderConfig, SamConfig
from ocr2cli.model.model import OcrModel

IMAGE_TOKEN = 3
VOCAB = 384

NANO = ModelConfig(
    sam=SamConfig(
        hidden_size=128,
        num_layers=4,
        num_heads=2,
        mlp_hidden=512,
        window_size=16,
        global_blocks=(2,),
        neck_channels=128,
        downsample_channels=(192, 256),
    ),
    query_encoder=QueryEncoderConfig(
        hidden_size=256,
        intermediate_size=768,
        num_layers=2,
        num_heads=4,
        num_kv_heads=4,
    ),
    decoder=DecoderConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        num_layers=7,
        num_heads=4,
        num_dense_layers=1,
        dense_intermediate=768,
        num_experts=8,
        experts_per_token=2,
        num_shared_experts=2,
        expert_intermediate=128,
    ),
    image_token_id=IMAGE_TOKEN,
)

# The "global" SAM block starts near-sighted: beyond REACH table rows its bias falls by SLOPE a row,
# so that crops see what whole views will see. One channel of each head is set aside for it.
REACH, SLOPE, CONSTANT = 10, 0.25, 8.0


def new_model(seed: int = 0) -> OcrModel:
    torch.manual_seed(seed)
    model = OcrModel(NANO)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    for name, p in model.named_parameters():
        if name.endswith(("experts_gate_up", "experts_down")):
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
        if name.endswith(
            ("attn.out.weight", "down.weight", "lin2.weight", "experts_down", "attn.proj.weight")
        ):
            p.data.mul_(0.3)
    nn.init.normal_(model.vision.sam.pos_embed, std=0.2)
    nn.init.normal_(model.vision.query_encoder.tile_queries, std=0.5)
    nn.init.normal_(model.vision.query_encoder.global_queries, std=0.5)
    nn.init.normal_(model.decoder.embed.weight, std=0.7)
    nn.init.normal_(model.vision.view_separator, std=0.7)
    impose_near_sight(model.vision)
    return model


@torch.no_grad()
def impose_near_sight(vision: nn.Module) -> None:
    """Put back the set-aside channel (the last of each head) after an optimiser step."""
    for block in vision.sam.blocks:
        if block.window:
            continue
        attn = block.attn
        width = attn.qkv.in_features
        per_head = width // attn.num_heads
        for head in range(attn.num_heads):
            row = head * per_head + per_head - 1
            attn.qkv.weight[row] = 0
            attn.qkv.bias[row] = CONSTANT
            attn.qkv.weight[width + row] = 0
            attn.qkv.bias[width + row] = 0
        for table in (attn.rel_pos_h, attn.rel_pos_w):
            offset = (torch.arange(table.shape[0]) - table.shape[0] // 2).abs().to(table)
            table[:, -1] = -SLOPE * (offset - REACH).clamp(min=0) / CONSTANT
