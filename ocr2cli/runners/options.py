"""A run's configuration -> what a runner on many machines is told.

Knows nothing about the cluster.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial

from ocr2cli.config import RunConfig
from ocr2cli.engines.choose import STUB, EnginePlan, plan_for_cores
from ocr2cli.output.page_cache import cache_opener
from ocr2cli.pipeline.options import ClusterOptions


def cluster_options(cfg: RunConfig, plan: EnginePlan) -> ClusterOptions:
    """Nodes plan anew, since they may be larger or smaller; paths must not depend on a folder."""
    engine = replace(
        cfg.engine, model=_absolute(cfg.engine.model), mmproj=_absolute(cfg.engine.mmproj)
    )
    there = replace(cfg, engine=engine, cache=os.path.abspath(cfg.cache) if cfg.cache else "")
    is_given = plan.fingerprint == STUB
    return ClusterOptions(
        address=cfg.ray_address,
        make_plan=None if is_given else partial(plan_for_cores, there, cache_opener(there)),
        fingerprint=plan.fingerprint,
        # A runner on a GPU sees that one alone, and calls it cuda:0.
        uses_gpus=(
            engine.engine == "native"
            and engine.device in ("auto", "cuda", "cuda:0")
            and engine.dtype != "int8"
        ),
    )


def _absolute(name: str) -> str:
    """A path that is there made absolute; the name of a model as it is."""
    return os.path.abspath(name) if name and os.path.exists(name) else name
