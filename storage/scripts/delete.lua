#!lua flags=allow-oom
-- delete: the session is gone, with everything that it held; a running turn of it ends at its next word to the store.
--
-- Guarantees: keys, indexes, counters and the lists of its grantees change together. Unknown, expired and foreign look
--   alike. It takes the role admin. Grantees are declared from a prior read; if they are others by now, nothing is written.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; then the lists of its grantees.
-- ARGV: 1 session id, 2 acting principal, then the grantees (0 or more)
-- Replies: DELETED | RETRY | DENIED role | ELSEWHERE owner_tag | GONE
-- Complexity: O(grantees × log sessions + messages, freed in the background). Caller: storage/sessions.py.
-- @include keys
-- @include clock
-- @include size
-- @include role
-- @include refusal
-- @include declared
-- @include grantees

local owner = redis.call('HGET', SESSION, 'own')
local refused = refusal(owner, 'admin') or misdeclared(owner)
if refused then return refused end
if not grantees_are(3) then return { 'RETRY' } end
remove_session(read_size(), 'deleted')
return { 'DELETED' }
