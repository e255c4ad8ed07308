-- Purpose: names for the keys of a session. Every script of a session declares all of them, in this order
-- (storage/README.md says what each holds); all are in one slot. SESSION … BLOBS live and die with the session; the LOG
-- has a life of its own, and SHARES stay until the session is removed.
local SESSION, MESSAGES, TURNS, VERDICTS, TEXTS, CUTS, RING, BLOBS, LOG = unpack(KEYS, 1, 9)
local BY_EXPIRY, BY_ACCESS, OWNER_BY_ACCESS, OWNER_BY_EXPIRY, SIZES, COUNTERS, OWNER_COUNTERS = unpack(KEYS, 10, 16)
local SHARES = KEYS[17]
