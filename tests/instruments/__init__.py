"""Instruments of the suite: real processes, stalling proxies in front of them, checkers of histories and answers.

They know the wire (RESP, HTTP, the simulator's control surface) and the command line, and import nothing of
``service``; of ``storage`` only the embedded Valkey. A mistake in the product therefore cannot hide in them.
"""
