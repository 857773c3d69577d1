"""Training recipe of nano: pages, labels, stages and evaluation. Not part of the wheel."""
