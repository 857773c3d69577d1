"""How much a run has before it, while its documents are still being opened.

Knows nothing about how long a page takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ocr2cli.pages import PageJob


@dataclass(slots=True)
class Outlook:
    """How many pages the run will read, as far as that is known while documents are listed.

    Documents not opened yet count as many pages as those opened had on average, the largest left
    out: a book among letters, opened first, says nothing of them.
    """

    num_documents: int
    num_listed: int = 0
    num_pages: int = 0
    num_resumed: int = 0
    _largest: int = 0
    _last: str | None = None

    def note(self, job: PageJob) -> None:
        """A page was listed; its document tells how many more there are."""
        if job.key.document != self._last:
            self._last = job.key.document
            self.num_listed += 1
            self.num_pages += job.num_pages
            self._largest = max(self._largest, job.num_pages)

    @property
    def num_to_read(self) -> int:
        """Pages still without a result when the run began."""
        others = self.num_listed - 1
        average = (self.num_pages - self._largest) / others if others > 0 else 1
        return round(self.num_pages + self._num_unseen * average) - self.num_resumed

    @property
    def is_guess(self) -> bool:
        """True while a document is not opened yet."""
        return self._num_unseen > 0

    @property
    def _num_unseen(self) -> int:
        return max(0, self.num_documents - self.num_listed)
