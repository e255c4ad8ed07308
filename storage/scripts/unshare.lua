#!lua flags=allow-oom
-- unshare: take a principal's role in a session away; what it does next there finds no session.
--
-- Guarantees: role and the grantee's list change together; repeatable. It takes the role admin, but anybody may give up its
--   own share. A running turn of the grantee ends at its next renewal or commit, whoever follows at its next look at the log.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; 18 the grantee's list of what is shared with it (zset, no TTL).
-- ARGV: 1 session id, 2 acting principal, 3 grantee
-- Replies: UNSHARED | NONE | OWNER | DENIED role | GONE
-- Complexity: O(log sessions shared with the grantee). Caller: storage/shares.py.
-- @include keys
-- @include role
-- @include refusal

local own, grantee = redis.call('HGET', SESSION, 'own'), ARGV[3]
local refused = refusal(own, grantee == ARGV[2] and 'viewer' or 'admin')
if refused then return refused end
if grantee == own then return { 'OWNER' } end
if redis.call('HDEL', SHARES, grantee) == 0 then return { 'NONE' } end
redis.call('ZREM', KEYS[18], ARGV[1])
return { 'UNSHARED' }
