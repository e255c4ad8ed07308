#!lua flags=allow-oom
-- sweep: take an expired session out of the indexes and counters.
--
-- Guarantees: a session that lives is never taken: if its key is there, its index score is repaired instead.
--   Repeatable: a second sweep answers NONE. Owner's keys and grantees are declared from a prior
--   read; if they are others by now, nothing is written.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; then the lists of its grantees.
-- ARGV: 1 session id, 2 owner tag, then the grantees (0 or more)
-- Replies: SWEPT | LIVE | RETRY | NONE
-- Complexity: O(grantees × log sessions). Caller: storage/capacity.py.
-- @include keys
-- @include clock
-- @include size
-- @include grantees

local size = read_size()
if not size then return { 'NONE' } end
if size.tag ~= ARGV[2] then return { 'RETRY' } end
local expires = redis.call('PEXPIRETIME', SESSION)
if expires ~= -2 then
  redis.call('ZADD', BY_EXPIRY, text(expires), ARGV[1])
  redis.call('ZADD', OWNER_BY_EXPIRY, text(expires), ARGV[1])
  return { 'LIVE' }
end
if not grantees_are(3) then return { 'RETRY' } end
remove_session(size, 'expired')
return { 'SWEPT' }
