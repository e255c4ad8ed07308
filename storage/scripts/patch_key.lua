#!lua flags=allow-oom
-- patch_key: change what a caller's key may do; its secret stays.
--
-- Guarantees: all fields change together or none; repeatable. Allowed in a full store: a key must always be stopped.
-- KEYS: 1 the key (hash, no TTL).
-- ARGV: 1 scopes, 2 expiry (ms; never: 0), 3 disabled (1 or 0), 4 labels (JSON); each '' for as it is
-- Replies: PATCHED | GONE
-- Complexity: O(1). Caller: storage/api_keys.py.

local FIELDS = { 'sc', 'ex', 'off', 'lb' }
local given = { ARGV[1], ARGV[2], ARGV[3], ARGV[4] }

if not redis.call('HGET', KEYS[1], 'h') then return { 'GONE' } end
for at, field in ipairs(FIELDS) do
  if given[at] ~= '' then redis.call('HSET', KEYS[1], field, given[at]) end
end
return { 'PATCHED' }
