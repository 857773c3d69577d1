"""Measuring: our stages, the machine's ceilings, and a peer on the same work in the same run."""
