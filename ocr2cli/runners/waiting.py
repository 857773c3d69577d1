"""Pages that no node holds, and which node gets which of them next.

Three kinds wait: fresh ones, suspects that were lost with a node, and those whose file a node could
not open. Knows nothing about Ray, or about when a node counts as lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from ocr2cli.pages import PageResult
from ocr2cli.pipeline.ledger import Ticket
from ocr2cli.runners.post import Post

# Pages lost together are given out again in groups smaller by this factor, down to one.
_SPLIT = 4


class Waiting:
    """posts: the driver's own table of actors, which changes under way."""

    def __init__(self, posts: Mapping[tuple[str, int], Post]) -> None:
        self.fresh: deque[Ticket] = deque()
        self._suspects: deque[Ticket] = deque()
        self._refused: deque[tuple[Ticket, PageResult]] = deque()
        self._num_losses: dict[int, int] = {}
        self._posts = posts

    def __len__(self) -> int:
        return len(self.fresh) + len(self._suspects) + len(self._refused)

    def add_suspect(self, ticket: Ticket, *, was_alone: bool) -> None:
        """A page that was lost with a node; alone there, its group cannot be made smaller."""
        if not was_alone:
            self._num_losses[ticket.serial] = self._losses(ticket) + 1
        self._suspects.append(ticket)

    def add_refused(self, ticket: Ticket, refusal: PageResult) -> None:
        """A page whose file a node could not open. refusal: its result when no other can."""
        self._refused.append((ticket, refusal))

    def forget(self, ticket: Ticket) -> None:
        """A page that has its result."""
        self._num_losses.pop(ticket.serial, None)

    def clear(self) -> list[Ticket]:
        """All that waited."""
        tickets = [*self.fresh, *self._suspects, *(one for one, _ in self._refused)]
        self.fresh.clear()
        self._suspects.clear()
        self._refused.clear()
        return tickets

    def num_free(self) -> int:
        """Pages that nodes have room for; one is kept at hand while none is up yet."""
        posts = self._open_posts()
        return max(1, sum(post.limit - len(post.held) for post in posts))

    def give_suspects(self) -> None:
        """Pages that were lost with a node: in groups, each of which has a node for itself."""
        while self._suspects:
            # A node that opens no file tells nothing about them, unless there is no other.
            posts = sorted(self._posts.values(), key=lambda one: one.is_doubted)
            post = next((one for one in posts if one.is_up and not one.held), None)
            if post is None or (post.is_doubted and not posts[0].is_doubted):
                return
            losses = self._losses(self._suspects[0])
            post.group = max(1, post.num_wanted // _SPLIT**losses)
            while (
                self._suspects
                and len(post.held) < post.group
                and self._losses(self._suspects[0]) == losses
            ):
                post.take(self._suspects.popleft())

    def give_refused(
        self, *, start_within_s: float, may_grow: bool
    ) -> Iterator[tuple[Ticket, PageResult]]:
        """Pages whose file a node could not open, each to a node that has not tried yet.

        Yields those for which there is none, or none that may still come up. may_grow: more nodes
        than these may be there.
        """
        for _ in range(len(self._refused)):
            ticket, refusal = self._refused.popleft()
            doubted = [post for post in self._posts.values() if post.has_room and post.is_doubted]
            others = [one for one in self._posts.values() if ticket.serial not in one.refused]
            post = next((one for one in [*self._open_posts(), *doubted] if one in others), None)
            if post is not None:
                post.take(ticket)
            elif may_grow or any(one.has_answered or one.age_s < start_within_s for one in others):
                self._refused.append((ticket, refusal))
            else:
                yield ticket, refusal

    def give_fresh(self) -> None:
        while self.fresh:
            posts = self._open_posts()
            if not posts:
                return
            posts[0].take(self.fresh.popleft())

    def _open_posts(self) -> list[Post]:
        """Who may be given ordinary pages, the least loaded first."""
        posts = sorted(
            (post for post in self._posts.values() if post.has_room and not post.is_doubted),
            key=lambda post: len(post.held),
        )
        # While suspects wait, one node is let run empty for them.
        return posts[1:] if self._suspects else posts

    def _losses(self, ticket: Ticket) -> int:
        return self._num_losses.get(ticket.serial, 0)
