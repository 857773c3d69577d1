"""A case's page as a job and as pixels, by the same rasteriser as a run.

Knows nothing about models.
"""

from __future__ import annotations

from ocr2cli.config import RasterConfig
from ocr2cli.eval.cases import Case, file_sha256
from ocr2cli.pages import PageImage, PageJob, PageKey


def page_job(case: Case, raster: RasterConfig) -> PageJob:
    """The job that reads this case's page. Raises: InputError when the file is gone."""
    return PageJob(
        key=PageKey(case.id, case.page),
        path=str(case.path),
        sha256=file_sha256(case.path),
        num_pages=1,
        dpi=raster.dpi,
    )


def load_page(case: Case, raster: RasterConfig) -> PageImage:
    """rgb uint8 [H, W, 3]. Raises: PageFault when the page cannot be read, InputError."""
    from ocr2cli.document.raster import render_page

    return render_page(page_job(case, raster), raster)
