"""Toy GGUF pairs written with the gguf package, from original names, by a second name table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

RENAMES = [
    (r"model\.embed_tokens", "token_embd"),
    (r"lm_head", "output"),
    (r"model\.norm", "output_norm"),
    (r"model\.layers\.(\d+)\.input_layernorm", r"blk.\1.attn_norm"),
    (r"model\.layers\.(\d+)\.post_attention_layernorm", r"blk.\1.ffn_norm"),
    (r"model\.layers\.(\d+)\.self_attn\.([qkv])_proj", r"blk.\1.attn_\2"),
    (r"model\.layers\.(\d+)\.self_attn\.o_proj", r"blk.\1.attn_output"),
    (r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj", r"blk.\1.ffn_\2"),
    (r"model\.layers\.(\d+)\.mlp\.shared_experts\.(gate|up|down)_proj", r"blk.\1.ffn_\2_shexp"),
    (r"model\.layers\.(\d+)\.mlp\.gate(?=\.weight)", r"blk.\1.ffn_gate_inp"),
    (r"model\.sam_model\.pos_embed", "v.sam.pos_embd.weight"),
    (r"model\.sam_model\.patch_embed\.proj", "v.sam.patch_embd"),
    (r"model\.sam_model\.blocks\.(\d+)\.norm1", r"v.sam.blk.\1.pre_ln"),
    (r"model\.sam_model\.blocks\.(\d+)\.norm2", r"v.sam.blk.\1.post_ln"),
    (r"model\.sam_model\.blocks\.(\d+)\.attn\.proj", r"v.sam.blk.\1.attn.out"),
    (r"model\.sam_model\.blocks\.(\d+)\.attn\.rel_pos_([hw])", r"v.sam.blk.\1.attn.pos_\2.weight"),
    (r"model\.sam_model\.blocks\.", "v.sam.blk."),
    (r"model\.sam_model\.", "v.sam."),
    (r"model\.qwen2_model\.query_", "v.resample_query_"),
    (r"model\.qwen2_model\.model\.model\.norm", "v.post_ln"),
    (r"model\.qwen2_model\.model\.model\.layers\.(\d+)\.input_layernorm", r"v.blk.\1.ln1"),
    (r"model\.qwen2_model\.model\.model\.layers\.(\d+)\.post_attention_layernorm", r"v.blk.\1.ln2"),
    (r"model\.qwen2_model\.model\.model\.layers\.(\d+)\.self_attn\.([qkv])_proj",
     r"v.blk.\1.attn_\2"),
    (r"model\.qwen2_model\.model\.model\.layers\.(\d+)\.self_attn\.o_proj", r"v.blk.\1.attn_out"),
    (r"model\.qwen2_model\.model\.model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj",
     r"v.blk.\1.ffn_\2"),
    (r"model\.vision_model\.embeddings\.class_embedding", "v.class_embd"),
    (r"model\.vision_model\.embeddings\.patch_embedding", "v.patch_embd"),
    (r"model\.vision_model\.embeddings\.position_embedding", "v.position_embd"),
    (r"model\.vision_model\.pre_layrnorm", "v.pre_ln"),
    (r"model\.vision_model\.transformer\.layers\.(\d+)\.layer_norm(\d)", r"v.blk.\1.ln\2"),
    (r"model\.vision_model\.transformer\.layers\.(\d+)\.self_attn\.qkv_proj", r"v.blk.\1.attn_qkv"),
    (r"model\.vision_model\.transformer\.layers\.(\d+)\.self_attn\.out_proj", r"v.blk.\1.attn_out"),
    (r"model\.vision_model\.transformer\.layers\.(\d+)\.mlp\.fc1", r"v.blk.\1.ffn_up"),
    (r"model\.vision_model\.transformer\.layers\.(\d+)\.mlp\.fc2", r"v.blk.\1.ffn_down"),
    (r"model\.projector\.layers", "mm.model.fc"),
    (r"model\.view_seperator", "v.view_seperator"),
    (r"model\.image_newline", "v.image_newline"),
]
EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
Tensors = dict[str, torch.Tensor]


def to_gguf_names(tensors: Tensors) -> Tensors:
    """Original tensors under GGUF names, experts stacked, the separator as one row."""
    out: Tensors = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if match := EXPERT.fullmatch(name):
            layer, expert, part = match.groups()
            experts.setdefault(f"blk.{layer}.ffn_{part}_exps.weight", {})[int(expert)] = tensor
            continue
        pattern, target = next(r for r in RENAMES if re.match(r[0], name))
        out[re.sub("^" + pattern, target, name)] = tensor
    for name, parts in experts.items():
        out[name] = torch.stack([parts[number] for number in sorted(parts)])
    out["v.view_seperator"] = out["v.view_seperator"][None]
    return out


def fuse(tensors: Tensors) -> Tensors:
    """The same with llama.cpp's fuse options: attn_qkv, and gate with up in the experts."""
    out = dict(tensors)
    for name in list(out):
        if re.fullmatch(r"blk\.\d+\.attn_q\.weight", name):
            parts = [out.pop(name.replace("attn_q.", f"attn_{x}.")) for x in "qkv"]
            out[name.replace("attn_q.", "attn_qkv.")] = torch.cat(parts)
        if name.endswith("ffn_gate_exps.weight"):
            both = [out.pop(name), out.pop(name.replace("gate", "up"))]
            out[name.replace("gate", "gate_up")] = torch.cat(both, dim=1)
    return out


def write_pair(
    folder: Path, config: dict[str, Any], tensors: Tensors, types: dict[str, str] | None = None,
    default: str = "F32",
) -> Path:
    """Write m.gguf and mmproj-m.gguf; returns the text file. types: GGUF name -> type."""
    folder.mkdir(parents=True, exist_ok=True)
    text = gguf.GGUFWriter(folder / "m.gguf", "deepseek2-ocr")
    vision = gguf.GGUFWriter(folder / "mmproj-m.gguf", "clip")
    add_text_keys(text, config)
    add_vision_keys(vision, config)
    for name, tensor in tensors.items():
        writer = vision if name.startswith(("v.", "mm.")) else text
        add_tensor(writer, name, tensor, (types or {}).get(name, default))
    for writer in (text, vision):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return folder / "m.gguf"


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: str) -> None:
    if tensor.dtype == torch.uint8:  # blocks as they are
        writer.add_tensor(name, tensor.numpy(), raw_dtype=getattr(gguf.GGMLQuantizationType, kind))
        return
    number = getattr(gguf.GGMLQuantizationType, kind)
    data = gguf.quants.quantize(tensor.float().numpy(), number)
    writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=number)


def add_text_keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The keys of a real file, `rope.dimension_count` = 0 among them."""
    text, p = config["language_config"], "deepseek2-ocr."
    writer.add_uint32("ocr2.image_token_id", config["image_token_id"])
    for key, value in {
        "block_count": text["num_hidden_layers"], "context_length": text["max_position_embeddings"],
        "embedding_length": text["hidden_size"], "feed_forward_length": text["intermediate_size"],
        "attention.head_count": text["num_attention_heads"],
        "attention.head_count_kv": text["num_attention_heads"],
        "leading_dense_block_count": text["first_k_dense_replace"],
        "expert_count": text["n_routed_experts"], "expert_used_count": text["num_experts_per_tok"],
        "expert_feed_forward_length": text["moe_intermediate_size"],
        "expert_shared_count": text["n_shared_experts"], "rope.dimension_count": 0,
        "expert_group_count": 1,
    }.items():
        writer.add_uint32(p + key, value)
    writer.add_float32(p + "attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32(p + "rope.freq_base", 10000.0)


def add_vision_keys(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    width = config["vision_config"]["width"]
    is_v2 = "qwen2-0-5b" in width
    sam, p = width["sam_vit_b"], "clip.vision."
    writer.add_string("clip.projector_type", "deepseekocr2" if is_v2 else "deepseekocr")
    writer.add_bool("clip.use_gelu", True)
    tower = width["qwen2-0-5b" if is_v2 else "clip-l-14-224"]
    keys = {
        "block_count": tower["layers"], "attention.head_count": tower["heads"],
        "embedding_length": tower["dim" if is_v2 else "width"],
        # 64 in real v1 files, a converter's slip: the tensors are to be believed.
        "feed_forward_length": tower["mlp_dim"] if is_v2 else 64,
        "window_size": sam["window_size"], "sam.block_count": sam["layers"],
        "sam.embedding_length": sam["width"], "sam.head_count": sam["heads"],
    }
    if is_v2:
        keys["attention.head_count_kv"] = tower["kv_heads"]
    for key, value in keys.items():
        writer.add_uint32(p + key, value)
    writer.add_float32(p + "attention.layer_norm_epsilon", 1e-6)
