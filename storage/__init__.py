"""Sessions in Redis: the data model and the only code that talks to it (see storage/README.md)."""
