#!lua flags=allow-oom
-- evict: make room by taking a session that was not looked at for long.
--
-- Guarantees: takes only what the caller saw (the score of its last access) and never a session with a running turn.
--   What the server has let go already counts as expired, whoever removes the rest.
--   Owner's keys and grantees are declared from a prior read; if they are others by now, nothing is written.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; then the lists of its grantees.
-- ARGV: 1 session id, 2 owner tag, 3 last access as the caller saw it, ms, then the grantees (0 or more)
-- Replies: EVICTED | EXPIRED | BUSY | SKIP | RETRY
-- Complexity: O(grantees × log sessions + messages, freed in the background). Caller: storage/capacity.py.
-- @include keys
-- @include clock
-- @include log
-- @include lease
-- @include size
-- @include grantees

local size = read_size()
if not size then return { 'SKIP' } end
if size.tag ~= ARGV[2] then return { 'RETRY' } end
if redis.call('ZSCORE', BY_ACCESS, ARGV[1]) ~= ARGV[3] then return { 'SKIP' } end
local s = redis.call('HMGET', SESSION, 'lt', 'lx')
if s[1] and s[1] ~= '' and lease_remaining_ms(s[2], now_ms()) > 0 then return { 'BUSY' } end
if not grantees_are(4) then return { 'RETRY' } end
if not s[1] then
  remove_session(size, 'expired')
  return { 'EXPIRED' }
end
remove_session(size, 'evicted')
return { 'EVICTED' }
