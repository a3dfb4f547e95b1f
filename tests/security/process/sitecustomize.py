"""Imported by Python in each process that the tests start: ``tests/security/plugin.py`` puts it on the path."""

import os

import aws_calls  # the file beside this one; nothing heavy is imported

if aws_calls.FOLDER in os.environ:
    aws_calls.install()
