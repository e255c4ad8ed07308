#!lua flags=allow-oom
-- delete_key: take a caller's key away.
--
-- Guarantees: repeatable. Allowed in a full store.
-- KEYS: 1 the key (hash, no TTL).
-- ARGV: none
-- Replies: DELETED | GONE
-- Complexity: O(1). Caller: storage/api_keys.py.

if not redis.call('HGET', KEYS[1], 'h') then return { 'GONE' } end
redis.call('UNLINK', KEYS[1])
return { 'DELETED' }
