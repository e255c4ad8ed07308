#!lua flags=no-writes
-- get: a session as it is at one instant; changes nothing, not even its time of access.
--
-- Guarantees: fields, end of life and the lease are read at the same instant, by the server's clock. Unknown, expired
--   and foreign look alike. It takes the role viewer.
-- KEYS 1-17: the session's keys, named in shared/keys.lua.
-- ARGV: 1 session id, 2 acting principal
-- Replies: FOUND role now_ms expires_at_ms lease_remaining_ms fields texts (the last two flat lists field, value, …)
--   | DENIED role | GONE
-- Complexity: O(1). Caller: storage/sessions.py.
-- @include keys
-- @include clock
-- @include log
-- @include lease
-- @include role
-- @include refusal

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'lx')
local refused = refusal(s[1], 'viewer')
if refused then return refused end
local now, remaining = now_ms(), 0
if s[2] ~= '' then remaining = lease_remaining_ms(s[3], now) end
return { 'FOUND', role_of(s[1]), text(now), text(redis.call('PEXPIRETIME', SESSION)), text(remaining),
  redis.call('HGETALL', SESSION), redis.call('HGETALL', TEXTS) }
