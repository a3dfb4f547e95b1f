"""Benchmarks, against what people would write otherwise. Run them with ``make bench``."""
