"""For tools that ask for a setup.py: metadata, dependencies and settings are in pyproject.toml."""

from setuptools import setup

setup()
