#!lua flags=allow-oom
-- touch: the session was looked at: it lives its TTL from now on.
--
-- Guarantees: native expiry and all indexes move to the same millisecond. Unknown, expired and foreign look alike.
--   It takes the role viewer.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 acting principal
-- Replies: TOUCHED | DENIED role | ELSEWHERE owner_tag | GONE
-- Complexity: O(log sessions). Caller: storage/sessions.py.
-- @include keys
-- @include clock
-- @include life
-- @include size
-- @include role
-- @include refusal
-- @include declared

local s = redis.call('HMGET', SESSION, 'own', 'ttl', 'ax', 'lt', 'lx')
local refused = refusal(s[1], 'viewer') or misdeclared(s[1])
if refused then return refused end
local now = now_ms()
local lease_end_ms = 0
if s[4] ~= '' then lease_end_ms = tonumber(s[5]) end
accessed_at(now)
live_until(end_of_life(now, tonumber(s[2]), tonumber(s[3]), lease_end_ms))
return { 'TOUCHED' }
