#!lua flags=allow-oom
-- renew: keep the lease, say how much was used so far, learn whether somebody asked to cancel.
--
-- Guarantees: only the holder renews; a turn with a verdict is told it and nothing is written. An expired lease
--   that nobody declared dead is taken up again. The session cannot expire under a running turn.
-- KEYS 1-13: the session's keys, named in shared/keys.lua; TTL of 1-6 is the session's.
-- ARGV: 1 session id, 2 turn id, 3 lease ms, 4 usage so far, four numbers (short: the
--   session hash stays a listpack while no value exceeds 64 bytes)
-- Replies: RENEWED cancel_flag | SETTLED verdict+number | LOST | GONE
-- Complexity: O(log sessions). Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include life

local turn_id, lease_ms = ARGV[2], tonumber(ARGV[3])

local s = redis.call('HMGET', SESSION, 'lt', 'cx', 'ttl', 'ax', 'own')
if not s[5] then return { 'GONE' } end
local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end
if s[1] ~= turn_id then return { 'LOST' } end

local now = now_ms()
local ends = now + lease_ms
redis.call('HSET', SESSION, 'lx', text(ends), 'us', ARGV[4])
if redis.call('PEXPIRETIME', SESSION) < ends + LEASE_GRACE_MS then
  live_until(end_of_life(now, tonumber(s[3]), tonumber(s[4]), ends))
end
return { 'RENEWED', s[2] }
