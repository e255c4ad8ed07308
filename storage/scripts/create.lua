#!lua
-- create: a new, empty session.
--
-- Guarantees: repeatable by nonce (a re-sent create of the same caller answers DUPLICATE and writes nothing);
--   never goes over a cap: the caller evicts on FULL and asks again; inherits nothing: while a size record of the id
--   stands without its session, the caller must sweep it first.
--   A full server refuses the script before its first write.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 owner, 3 owner tag, 4 nonce (the first head), 5 ttl ms, 6 absolute end ms (0 none),
--   7 name ('' none), 8 creating turn id ('' none), 9 model ('' none), 10 max turns (0 none),
--   11 system prompt as JSON ('' none), 12 title, 13 metadata as JSON, 14 tokens at which it is compacted
--   (0 none), 15 what is to be kept then ('' nothing in particular), 16 sessions that the owner may still have in this bucket,
--   17 the same for everybody together
-- Replies: CREATED | DUPLICATE | EXISTS | STALE | FULL owner | FULL all
-- Complexity: O(log sessions). Caller: storage/sessions.py.
-- @include keys
-- @include clock
-- @include life
-- @include size

local owner, tag, nonce = ARGV[2], ARGV[3], ARGV[4]
local ttl_ms, absolute_ms = tonumber(ARGV[5]), tonumber(ARGV[6])

local known = redis.call('HMGET', SESSION, 'nonce', 'own')
if known[1] then
  if known[1] == nonce and known[2] == owner then return { 'DUPLICATE' } end
  return { 'EXISTS' }
end
if redis.call('HEXISTS', SIZES, ARGV[1]) == 1 then return { 'STALE' } end
if redis.call('ZCARD', OWNER_BY_ACCESS) >= tonumber(ARGV[16]) then return { 'FULL', 'owner' } end
if redis.call('ZCARD', BY_ACCESS) >= tonumber(ARGV[17]) then return { 'FULL', 'all' } end

local now = now_ms()
redis.call('HSET', SESSION, 'own', owner, 'nonce', nonce, 'head', nonce, 'cr', text(now), 'ttl', text(ttl_ms),
  'ax', text(absolute_ms), 'nm', ARGV[7], 'ct', ARGV[8], 'md', ARGV[9], 'mt', ARGV[10],
  'n', '0', 'b', '0', 'tn', '0', 'lt', '', 'ln', '0', 'lx', '0', 'lr', '', 'cx', '0', 'eh', '', 'es', '0',
  'it', '0', 'ot', '0', 'rt', '0', 'wt', '0', 'rev', '1', 'eo', '', 'eb', '0', 'ctx', '', 'ca', '0',
  'kv', '0', 'ku', '0', 'kg', '0', 'kl', '', 'kc', '0', 'kt', '0', 'ki', '0', 'ko', '0')
redis.call('UNLINK', LOG, SHARES)  -- of a session of this id that has expired: they may outlive that one
redis.call('HSET', TEXTS, 'system', ARGV[11], 'title', ARGV[12], 'metadata', ARGV[13], 'tokens_target', ARGV[14],
  'instructions', ARGV[15])
local size = { tag = tag, bytes = 0, messages = 0, created = seconds_of_service(now) }
write_size(size)
count('age_s', size.created)
accessed_at(now)
live_until(end_of_life(now, ttl_ms, absolute_ms, 0))
return { 'CREATED' }
