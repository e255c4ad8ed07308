#!lua flags=no-writes
-- shares: who a session is shared with, and in which role; of one principal, or of all.
--
-- Guarantees: all of one instant. It takes the role admin, but anybody may ask about its own share.
-- KEYS 1-17: the session's keys, named in shared/keys.lua.
-- ARGV: 1 session id, 2 acting principal, 3 principal that is asked about ('' all)
-- Replies: SHARES pairs (a flat list principal, role, …) | DENIED role | GONE
-- Complexity: O(shares). Caller: storage/shares.py.
-- @include keys
-- @include role
-- @include refusal

local own, one = redis.call('HGET', SESSION, 'own'), ARGV[3]
local refused = refusal(own, one == ARGV[2] and 'viewer' or 'admin')
if refused then return refused end
if one == '' then return { 'SHARES', redis.call('HGETALL', SHARES) } end
local role = redis.call('HGET', SHARES, one)
return { 'SHARES', role and { one, role } or {} }
