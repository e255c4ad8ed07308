#!lua
-- share: let another principal into a session, in a role, or change the role that it has.
--
-- Guarantees: role and the grantee's list change together; repeatable. It takes the role admin. The owner has no share, and
--   no one can change what it may do. The session's life and time of access stay.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; 18 the grantee's list of what is shared with it (zset, no TTL).
-- ARGV: 1 session id, 2 acting principal, 3 grantee, 4 role: viewer | writer | admin, 5 grantees that a session may have,
--   6 sessions of one bucket that may be shared with one principal
-- Replies: SHARED new_flag | OWNER | FULL session | FULL principal | DENIED role | GONE
-- Complexity: O(log sessions shared with the grantee). Caller: storage/shares.py.
-- @include keys
-- @include clock
-- @include role
-- @include refusal

local own = redis.call('HGET', SESSION, 'own')
local refused = refusal(own, 'admin')
if refused then return refused end
local grantee, list = ARGV[3], KEYS[18]
if grantee == own then return { 'OWNER' } end
local is_new = redis.call('HEXISTS', SHARES, grantee) == 0
if is_new and redis.call('HLEN', SHARES) >= tonumber(ARGV[5]) then return { 'FULL', 'session' } end
if is_new and redis.call('ZCARD', list) >= tonumber(ARGV[6]) then return { 'FULL', 'principal' } end

redis.call('HSET', SHARES, grantee, ARGV[4])
if is_new then redis.call('ZADD', list, text(now_ms()), ARGV[1]) end
return { 'SHARED', is_new and '1' or '0' }
