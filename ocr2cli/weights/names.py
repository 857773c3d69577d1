"""THE NAME MAP: which stored tensors make up each of our parameters, in every naming.

Knows shapes and names; knows nothing about files, dtypes or torch.
Source: the published tensor index of deepseek-ai/DeepSeek-OCR-2, transformers 5.23
`conversion_mapping.py` ("deepseek_ocr2"), llama.cpp `gguf-py/gguf/tensor_mapping.py`.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

from ocr2cli.model.config import (
    ClipConfig,
    DecoderConfig,
    ModelConfig,
    QueryEncoderConfig,
    SamConfig,
)
from ocr2cli.weights.params import Naming, Param, Piece, Shape, single, stacked


def model_params(config: ModelConfig) -> list[Param]:
    """Every parameter of the model in file order, vision first."""
    return [*vision_params(config), *decoder_params(config.decoder)]


def vision_params(config: ModelConfig) -> list[Param]:
    """SAM, then the query encoder (v2) or CLIP (v1), projector and layout vectors."""
    params = list(_sam(config.sam))
    width = config.decoder.hidden_size
    if config.query_encoder is not None:
        params += _query_encoder(config.query_encoder)
        projector_in = config.query_encoder.hidden_size
    elif config.clip is not None:
        params += _clip(config.clip)
        projector_in = config.clip.hidden_size + config.sam.downsample_channels[1]
    else:
        raise ValueError("a model has either a query encoder or a CLIP tower")
    params += _projector(projector_in, width)
    separator = single(
        "vision.view_separator", (width,), "model.view_seperator", "model.view_separator",
        "v.view_seperator", f32=True,
    )
    # GGUF keeps the separator as a matrix of one row.
    params.append(replace(separator, gguf=(Piece("v.view_seperator", (1, width)),)))
    if config.is_v1:
        name = "image_newline"
        params.append(
            single(f"vision.{name}", (width,), f"model.{name}", "", f"v.{name}", f32=True)
        )
    return params


def decoder_params(config: DecoderConfig) -> list[Param]:
    """Embedding, layers, final norm and output matrix of the decoder."""
    vocab = (config.vocab_size, config.hidden_size)
    tf = "model.language_model."
    params = [
        single("decoder.embed.weight", vocab, "model.embed_tokens.weight",
               f"{tf}embed_tokens.weight", "token_embd.weight"),
    ]
    for layer in range(config.num_layers):
        params += _decoder_layer(config, layer)
    params += [
        single("decoder.norm.weight", (config.hidden_size,), "model.norm.weight",
               f"{tf}norm.weight", "output_norm.weight", f32=True),
        single("decoder.lm_head.weight", vocab, "lm_head.weight", "lm_head.weight",
               "output.weight"),
    ]
    return params


def count_parameters(config: ModelConfig) -> int:
    """Numbers in the checkpoint: 3,389,119,360 for DeepSeek-OCR-2, 3,336,106,240 for v1."""
    return sum(param.numel for param in model_params(config))


def detect_naming(names: Container[str]) -> Naming | None:
    """Whose names these are, told by tensors that every checkpoint has; None when unknown."""
    marks = {
        Naming.ORIGINAL: ("model.embed_tokens.weight", "model.sam_model.pos_embed"),
        Naming.TRANSFORMERS: (
            "model.language_model.embed_tokens.weight",
            "model.vision_tower.sam_encoder.pos_embed",
        ),
        Naming.GGUF: ("token_embd.weight", "v.sam.pos_embd.weight"),
    }
    for naming, (text, vision) in marks.items():
        if text in names or vision in names:
            return naming
    return None


# Tensors a checkpoint may hold that the model does not use, and why.
_IGNORED = {
    r"model\.qwen2_model\.query_(?!768\.|1024\.)\w+\.weight":
        "query table of a view size the model was not released with",
    r"model\.vision_model\.embeddings\.position_ids": "a counted range, not a weight",
    r"(.+\.)?rotary_emb\.inv_freq": "computed from rope_theta",
    r"rope_freqs\.weight": "computed from rope_theta",
}


def why_ignored(name: str) -> str:
    """The reason a stored tensor is not needed, or "" when it must have a place."""
    for pattern, reason in _IGNORED.items():
        if re.fullmatch(pattern, name):
            return reason
    return ""


def _sam(config: SamConfig) -> Iterator[Param]:
    ours, theirs, tf, gg = (
        "vision.sam.", "model.sam_model.", "model.vision_tower.sam_encoder.", "v.sam.",
    )
    grid = config.image_size // config.patch_size
    width, neck, patch = config.hidden_size, config.neck_channels, config.patch_size

    def one(leaf: str, shape: Shape, original: str, native: str, gguf: str) -> Param:
        return single(ours + leaf, shape, theirs + original, tf + native, gg + gguf, f32=True)

    yield one("pos_embed", (1, grid, grid, width), "pos_embed", "pos_embed", "pos_embd.weight")
    for leaf, shape in (("weight", (width, 3, patch, patch)), ("bias", (width,))):
        yield one(f"patch_embed.{leaf}", shape, f"patch_embed.proj.{leaf}",
                  f"patch_embed.projection.{leaf}", f"patch_embd.{leaf}")
    for block in range(config.num_layers):
        yield from _sam_block(config, block)
    norms = (("norm1", "neck.1", "layer_norm1"), ("norm2", "neck.3", "layer_norm2"))
    kernels = {"neck.0": (neck, width, 1, 1), "neck.2": (neck, neck, 3, 3)}
    for number, (norm, original, native) in enumerate(norms, start=1):
        conv = f"neck.{2 * number - 2}"
        yield one(f"neck.conv{number}.weight", kernels[conv], f"{conv}.weight",
                  f"neck.conv{number}.weight", f"{conv}.weight")
        for leaf in ("weight", "bias"):
            yield one(f"neck.{norm}.{leaf}", (neck,), f"{original}.{leaf}",
                      f"neck.{native}.{leaf}", f"{original}.{leaf}")
    before = neck
    for number, channels in enumerate(config.downsample_channels, start=1):
        net = f"net_{number + 1}.weight"
        yield one(f"down{number}.weight", (channels, before, 3, 3), net,
                  f"proj.conv{number}.weight", net)
        before = channels


def _sam_block(config: SamConfig, block: int) -> Iterator[Param]:
    width, hidden = config.hidden_size, config.mlp_hidden
    grid = config.image_size // config.patch_size
    side = grid if block in config.global_blocks else config.window_size
    table = (2 * side - 1, config.head_dim)
    rows = (
        ("norm1", "norm1", "layer_norm1", "pre_ln", (width, 0)),
        ("attn.qkv", "attn.qkv", "attn.qkv", "attn.qkv", (3 * width, width)),
        ("attn.proj", "attn.proj", "attn.proj", "attn.out", (width, width)),
        ("norm2", "norm2", "layer_norm2", "post_ln", (width, 0)),
        ("mlp.lin1", "mlp.lin1", "mlp.lin1", "mlp.lin1", (hidden, width)),
        ("mlp.lin2", "mlp.lin2", "mlp.lin2", "mlp.lin2", (width, hidden)),
    )
    prefixes = (
        f"vision.sam.blocks.{block}.", f"model.sam_model.blocks.{block}.",
        f"model.vision_tower.sam_encoder.layers.{block}.", f"v.sam.blk.{block}.",
    )
    yield from _affine_rows(rows, prefixes)
    for axis in ("h", "w"):
        leaf = f"attn.rel_pos_{axis}"
        names = (leaf, leaf, leaf, f"attn.pos_{axis}.weight")
        ours, theirs, tf, gg = (p + n for p, n in zip(prefixes, names, strict=True))
        yield single(ours, table, theirs, tf, gg, f32=True)


def _affine_rows(
    rows: Sequence[tuple[str, str, str, str, tuple[int, int]]],
    prefixes: tuple[str, str, str, str],
) -> Iterator[Param]:
    """Modules with weight and bias. rows: our, original, transformers, GGUF name, (out, in);
    in = 0 is a norm."""
    for *leaves, (rows_out, rows_in) in rows:
        ours, theirs, tf, gg = (p + leaf for p, leaf in zip(prefixes, leaves, strict=True))
        weight = (rows_out, rows_in) if rows_in else (rows_out,)
        yield single(f"{ours}.weight", weight, f"{theirs}.weight", f"{tf}.weight", f"{gg}.weight",
                     f32=not rows_in)
        yield single(f"{ours}.bias", (rows_out,), f"{theirs}.bias", f"{tf}.bias", f"{gg}.bias",
                     f32=True)


def _query_encoder(config: QueryEncoderConfig) -> Iterator[Param]:
    width = config.hidden_size
    tower = "model.vision_tower."
    for name, pixels, rows in (
        ("tile_queries", 768, config.tile_queries), ("global_queries", 1024, config.global_queries)
    ):
        yield single(
            f"vision.query_encoder.{name}", (rows, width),
            f"model.qwen2_model.query_{pixels}.weight",
            f"{tower}query_{pixels}_resolution.weight", f"v.resample_query_{pixels}.weight",
        )
    head = config.head_dim
    attention = (config.num_heads * head, config.num_kv_heads * head, config.num_kv_heads * head)
    for layer in range(config.num_layers):
        prefixes = (
            f"vision.query_encoder.layers.{layer}.",
            f"model.qwen2_model.model.model.layers.{layer}.",
            f"{tower}vision_encoder.layers.{layer}.",
            f"v.blk.{layer}.",
        )
        norms = (("input_norm", "ln1"), ("post_norm", "ln2"))
        yield from _llama_layer(prefixes, norms, width, attention, has_bias=True)
        yield from _gated_mlp("mlp", prefixes, width, config.intermediate_size, gguf="ffn_{}")
    yield single(
        "vision.query_encoder.norm.weight", (width,), "model.qwen2_model.model.model.norm.weight",
        f"{tower}vision_encoder.norm.weight", "v.post_ln.weight", f32=True,
    )


def _llama_layer(
    prefixes: tuple[str, str, str, str],
    norms: tuple[tuple[str, str], tuple[str, str]],
    width: int,
    attention: tuple[int, int, int],
    *,
    has_bias: bool,
) -> Iterator[Param]:
    """Two norms and attention, named as Llama and Qwen2 do; norms: (ours, GGUF) for each."""
    ours, theirs, tf, gg = prefixes
    stored = ("input_layernorm.weight", "post_attention_layernorm.weight")
    for (norm, gguf_norm), leaf in zip(norms, stored, strict=True):
        yield single(f"{ours}{norm}.weight", (width,), theirs + leaf, tf + leaf,
                     f"{gg}{gguf_norm}.weight", f32=True)
    for kind in ("weight", "bias") if has_bias else ("weight",):
        shape = (sum(attention), width) if kind == "weight" else (sum(attention),)
        leaves = [f"self_attn.{letter}_proj.{kind}" for letter in "qkv"]
        yield stacked(
            f"{ours}attn.qkv.{kind}", shape, attention,
            original=[theirs + leaf for leaf in leaves],
            transformers=[tf + leaf for leaf in leaves],
            gguf=[f"{gg}attn_{letter}.{kind}" for letter in "qkv"],
            fused=f"{gg}attn_qkv.{kind}", f32=kind == "bias",
        )
    out = "self_attn.o_proj.weight"
    # The text file says attn_output, the vision file attn_out.
    gguf_out = "attn_out.weight" if gg.startswith("v.") else "attn_output.weight"
    yield single(f"{ours}attn.out.weight", (width, attention[0]), theirs + out, tf + out,
                 gg + gguf_out)


def _gated_mlp(
    name: str, prefixes: tuple[str, str, str, str], width: int, hidden: int, *, gguf: str
) -> Iterator[Param]:
    """gate and up stacked, then down. gguf: pattern of the leaf, e.g. "ffn_{}_shexp"."""
    ours, theirs, tf, gg = prefixes
    # Our shared experts are `mlp.shared`, stored as `mlp.shared_experts`.
    stored = "mlp.shared_experts" if name == "mlp.shared" else name
    leaves = [f"{stored}.{part}_proj.weight" for part in ("gate", "up")]
    yield stacked(
        f"{ours}{name}.gate_up.weight", (2 * hidden, width), (hidden, hidden),
        original=[theirs + leaf for leaf in leaves],
        transformers=[tf + leaf for leaf in leaves],
        gguf=[f"{gg}{gguf.format(part)}.weight" for part in ("gate", "up")],
    )
    down = f"{stored}.down_proj.weight"
    yield single(f"{ours}{name}.down.weight", (width, hidden), theirs + down, tf + down,
                 f"{gg}{gguf.format('down')}.weight")


def _clip(config: ClipConfig) -> Iterator[Param]:
    width, hidden = config.hidden_size, config.intermediate_size
    ours, theirs = "vision.clip.", "model.vision_model."
    embeddings = f"{theirs}embeddings."
    yield single(f"{ours}class_embedding", (width,), f"{embeddings}class_embedding", "",
                 "v.class_embd", f32=True)
    # SAM features enter CLIP in place of its own patches; the convolution is dead weight that a
    # conversion carries along.
    unused = single(f"{ours}patch_embed.weight", (width, 3, 14, 14),
                    f"{embeddings}patch_embedding.weight", "", "v.patch_embd.weight", f32=True)
    yield replace(unused, is_used=False)
    yield single(f"{ours}position_embedding.weight", (config.num_positions, width),
                 f"{embeddings}position_embedding.weight", "", "v.position_embd.weight", f32=True)
    prefixes = (ours, theirs, "", "v.")
    yield from _affine_rows([("pre_norm", "pre_layrnorm", "", "pre_ln", (width, 0))], prefixes)
    rows = (
        ("norm1", "layer_norm1", "", "ln1", (width, 0)),
        ("attn.qkv", "self_attn.qkv_proj", "", "attn_qkv", (3 * width, width)),
        ("attn.out", "self_attn.out_proj", "", "attn_out", (width, width)),
        ("norm2", "layer_norm2", "", "ln2", (width, 0)),
        ("mlp.fc1", "mlp.fc1", "", "ffn_up", (hidden, width)),
        ("mlp.fc2", "mlp.fc2", "", "ffn_down", (width, hidden)),
    )
    for layer in range(config.num_layers):
        yield from _affine_rows(rows, (
            f"{ours}layers.{layer}.", f"{theirs}transformer.layers.{layer}.", "", f"v.blk.{layer}.",
        ))


def _projector(width_in: int, width_out: int) -> Iterator[Param]:
    for leaf, shape in (("weight", (width_out, width_in)), ("bias", (width_out,))):
        yield single(
            f"vision.projector.{leaf}", shape, f"model.projector.layers.{leaf}",
            f"model.multi_modal_projector.{leaf}", f"mm.model.fc.{leaf}", f32=leaf == "bias",
        )


def _decoder_layer(config: DecoderConfig, layer: int) -> Iterator[Param]:
    width = config.hidden_size
    prefixes = (
        f"decoder.layers.{layer}.", f"model.layers.{layer}.",
        f"model.language_model.layers.{layer}.", f"blk.{layer}.",
    )
    norms = (("attn_norm", "attn_norm"), ("ffn_norm", "ffn_norm"))
    yield from _llama_layer(prefixes, norms, width, (width, width, width), has_bias=False)
    if layer < config.num_dense_layers:
        yield from _gated_mlp("mlp", prefixes, width, config.dense_intermediate, gguf="ffn_{}")
        return
    ours, theirs, tf, gg = prefixes
    router = "mlp.gate.weight"
    yield single(f"{ours}mlp.router.weight", (config.num_experts, width), theirs + router,
                 tf + router, f"{gg}ffn_gate_inp.weight", f32=True)
    yield from _experts(config, prefixes)
    yield from _gated_mlp("mlp.shared", prefixes, width, config.shared_intermediate,
                          gguf="ffn_{}_shexp")


def _experts(config: DecoderConfig, prefixes: tuple[str, str, str, str]) -> Iterator[Param]:
    """Routed experts: one tensor each in the original, stacked everywhere else."""
    ours, theirs, tf, gg = prefixes
    count, hidden, width = config.num_experts, config.expert_intermediate, config.hidden_size
    boxes = {"gate": slice(0, hidden), "up": slice(hidden, 2 * hidden)}
    shape = (count, 2 * hidden, width)
    yield Param(
        f"{ours}mlp.experts_gate_up", shape,
        original=tuple(
            Piece(f"{theirs}mlp.experts.{expert}.{part}_proj.weight", (hidden, width),
                  (expert, box))
            for expert in range(count) for part, box in boxes.items()
        ),
        transformers=(Piece(f"{tf}mlp.experts.gate_up_proj", shape),),
        gguf=tuple(
            Piece(f"{gg}ffn_{part}_exps.weight", (count, hidden, width), (slice(None), box))
            for part, box in boxes.items()
        ),
        gguf_fused=(Piece(f"{gg}ffn_gate_up_exps.weight", shape),),
    )
    down = (count, width, hidden)
    yield Param(
        f"{ours}mlp.experts_down", down,
        original=tuple(
            Piece(f"{theirs}mlp.experts.{expert}.down_proj.weight", (width, hidden), (expert,))
            for expert in range(count)
        ),
        transformers=(Piece(f"{tf}mlp.experts.down_proj", down),),
        gguf=(Piece(f"{gg}ffn_down_exps.weight", down),),
    )
