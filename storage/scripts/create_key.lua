#!lua
-- create_key: write a caller's key that is not there yet.
--
-- Guarantees: whole or not at all; repeatable by the digest of its secret (a re-sent create answers CREATED and writes
--   nothing); another key of this id is never written over.
-- KEYS: 1 the key (hash, no TTL).
-- ARGV: 1 digest of the secret, 2 principal, 3 scopes (words with spaces between), 4 expiry (ms; never: 0), 5 labels (JSON)
-- Replies: CREATED | EXISTS
-- Complexity: O(1). Caller: storage/api_keys.py.
-- @include clock

local known = redis.call('HGET', KEYS[1], 'h')
if known then
  if known == ARGV[1] then return { 'CREATED' } end
  return { 'EXISTS' }
end
redis.call('HSET', KEYS[1], 'h', ARGV[1], 'pr', ARGV[2], 'sc', ARGV[3], 'ex', ARGV[4], 'lb', ARGV[5],
  'off', '0', 'cr', text(now_ms()), 'ro', '0', 'ph', '', 'pu', '0')
return { 'CREATED' }
