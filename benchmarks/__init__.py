"""What is measured, against what: see README.md. Run it with ``make bench``."""
