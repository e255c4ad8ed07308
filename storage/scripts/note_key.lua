#!lua flags=allow-oom
-- note_key: list a caller's key or list it no more, and count the change, so that every replica looks again.
--
-- Guarantees: the list and the count change together; sent twice it counts twice, which costs a look. Allowed in a full
--   store: without the count a key that was stopped would be honoured for longer.
-- KEYS: 1 the list (zset, all scores 0, no TTL), 2 the count (hash, no TTL).
-- ARGV: 1 id of the key, 2 what is to be done: add, remove, or '' for the count alone
-- Replies: NOTED
-- Complexity: O(log keys). Caller: storage/api_keys.py.

if ARGV[2] == 'add' then redis.call('ZADD', KEYS[1], 0, ARGV[1]) end
if ARGV[2] == 'remove' then redis.call('ZREM', KEYS[1], ARGV[1]) end
redis.call('HINCRBY', KEYS[2], 'changes', 1)
return { 'NOTED' }
