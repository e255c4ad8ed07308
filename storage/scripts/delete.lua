#!lua flags=allow-oom
-- delete: the session is gone, with everything that it held; a running turn of it ends at its next word to the store.
--
-- Guarantees: keys, indexes and counters change together. Unknown, expired and foreign look alike.
-- KEYS 1-16: the session's keys, named in shared/keys.lua.
-- ARGV: 1 session id, 2 owner
-- Replies: DELETED | GONE
-- Complexity: O(log sessions + messages, freed in the background). Caller: storage/sessions.py.
-- @include keys
-- @include clock
-- @include size

local owner = redis.call('HGET', SESSION, 'own')
if not owner or owner ~= ARGV[2] then return { 'GONE' } end
remove_session(read_size(), 'deleted')
return { 'DELETED' }
