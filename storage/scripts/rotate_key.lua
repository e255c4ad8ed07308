#!lua flags=allow-oom
-- rotate_key: give a caller's key another secret; the one before stays good for the overlap.
--
-- Guarantees: at most two secrets are good at once; repeatable by the digest of the new one, which does not prolong the
--   overlap. Allowed in a full store: a secret that has leaked must always be replaced.
-- KEYS: 1 the key (hash, no TTL).
-- ARGV: 1 digest of the new secret, 2 overlap (ms)
-- Replies: ROTATED | GONE
-- Complexity: O(1). Caller: storage/api_keys.py.
-- @include clock

local present = redis.call('HGET', KEYS[1], 'h')
if not present then return { 'GONE' } end
if present == ARGV[1] then return { 'ROTATED' } end
local now = now_ms()
redis.call('HSET', KEYS[1], 'ph', present, 'pu', text(now + tonumber(ARGV[2])), 'h', ARGV[1], 'ro', text(now))
return { 'ROTATED' }
