"""The description of the HTTP interface: one table of operations, from which `/openapi.json` and docs/api.md are made.

A new endpoint is a row in operations.py beside its route in app.py, its objects are in schemas.py, its headers in
service/headers.py and its error codes in service/errors.py. Tests hold all of them against the routes, the parsers and
the answers of running replicas.
"""
