"""A case's page as pixels, by the same rasteriser as a run. Knows nothing about models."""

from __future__ import annotations

from ocr2cli.config import RasterConfig
from ocr2cli.eval.cases import Case, file_sha256
from ocr2cli.pages import PageImage, PageJob, PageKey


def load_page(case: Case, raster: RasterConfig) -> PageImage:
    """rgb uint8 [H, W, 3]. Raises: PageFault when the page cannot be read."""
    from ocr2cli.document.raster import render_page

    job = PageJob(
        key=PageKey(case.id, case.page),
        path=str(case.path),
        sha256=file_sha256(case.path),
        num_pages=1,
        dpi=raster.dpi,
    )
    return render_page(job, raster)
