"""Baton: conversations with Claude kept in Redis, carried on by any replica."""

from importlib.metadata import version

__version__ = version("baton-sessions")
