#!lua
-- fork: a new session that goes on from a message of another one, copied within the server.
--
-- Guarantees: repeatable by nonce, capped and inheriting nothing of its id, as create. The copy is of one instant: the
--   source's head must be the one that the caller computed with, so its messages are those that were counted. It holds all
--   turns and attachments of the source and ends with a turn of its own, which rewinds to the message asked for; a turn that
--   runs in the source has the verdict aborted in the copy. The source is not changed, not even its time of access. Its
--   checkpoint comes along if all that it covers does. Tokens are counted from zero: they were paid once. A full server refuses the script before its first write.
-- KEYS 1-17: the new session's keys, named in shared/keys.lua; TTL of 1-8 is the session's. 18-25: session, messages, turns,
--   verdicts, texts, cuts, attachments, shares of the source; in the same bucket.
-- ARGV: 1 new session id, 2 its owner, who must have a role in the source, 3 owner tag, 4 nonce, 5 ttl ms, 6 absolute end ms
--   (0 none), 7 head of the source, 8 messages kept, 9 committed turns kept, 10 id of the turn that forks, 11 its record,
--   12 turns max, 13 title, 14 metadata as JSON (both '' as the source's), 15 what is known of the context (opaque),
--   16 sessions that the owner may still have in this bucket, 17 the same for everybody together
-- Replies: CREATED | DUPLICATE | EXISTS | STALE | FULL owner | FULL all | GONE | MOVED head | TURNS_FULL | CORRUPT
-- Complexity: O(size of the source). Caller: storage/transfer.py.
-- @include keys
-- @include clock
-- @include life
-- @include size

local owner, tag, nonce, turn_id = ARGV[2], ARGV[3], ARGV[4], ARGV[10]
local ttl_ms, absolute_ms, kept = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[8])
local FROM_SESSION, FROM_MESSAGES, FROM_TURNS, FROM_VERDICTS = unpack(KEYS, 18, 21)
local FROM_TEXTS, FROM_CUTS, FROM_BLOBS, FROM_SHARES = unpack(KEYS, 22, 25)
local STEP = 100

local known = redis.call('HMGET', SESSION, 'nonce', 'own')
if known[1] then
  if known[1] == nonce and known[2] == owner then return { 'DUPLICATE' } end
  return { 'EXISTS' }
end
if redis.call('HEXISTS', SIZES, ARGV[1]) == 1 then return { 'STALE' } end
if redis.call('ZCARD', OWNER_BY_ACCESS) >= tonumber(ARGV[16]) then return { 'FULL', 'owner' } end
if redis.call('ZCARD', BY_ACCESS) >= tonumber(ARGV[17]) then return { 'FULL', 'all' } end

local s = redis.call('HMGET', FROM_SESSION, 'own', 'head', 'n', 'b', 'lt', 'ln', 'md', 'mt', 'eh', 'es', 'nonce',
  'kv', 'ku', 'kc', 'kt')
local visible = s[1] == owner or redis.call('HGET', FROM_SHARES, owner)
if not (s[1] and visible) then return { 'GONE' } end
local head, messages, holder, last = s[2], tonumber(s[3]), s[5], tonumber(s[6])
if head ~= ARGV[7] then return { 'MOVED', head } end
if redis.call('HLEN', FROM_VERDICTS) >= tonumber(ARGV[12]) then return { 'TURNS_FULL' } end
if kept > messages or redis.call('LLEN', FROM_MESSAGES) ~= messages or redis.call('LLEN', FROM_TURNS) ~= last
  or redis.call('HEXISTS', FROM_TEXTS, 'system') == 0 then return { 'CORRUPT' } end

local bytes = tonumber(s[4])
for from = kept, messages - 1, STEP do
  for _, dropped in ipairs(redis.call('LRANGE', FROM_MESSAGES, from, from + STEP - 1)) do bytes = bytes - #dropped end
end

for place, from in pairs({ [2] = FROM_MESSAGES, [3] = FROM_TURNS, [4] = FROM_VERDICTS, [5] = FROM_TEXTS,
  [6] = FROM_CUTS, [8] = FROM_BLOBS }) do
  redis.call('COPY', from, KEYS[place], 'REPLACE')
end
if kept == 0 then redis.call('DEL', MESSAGES) else redis.call('LTRIM', MESSAGES, 0, kept - 1) end
if holder ~= '' then redis.call('HSET', VERDICTS, holder, 'A' .. s[6]) end
local number = text(redis.call('RPUSH', TURNS, ARGV[11]))
redis.call('HSET', VERDICTS, turn_id, 'C' .. number)
if kept < messages then redis.call('RPUSH', CUTS, number .. ' ' .. text(kept)) end

local now = now_ms()
redis.call('HSET', SESSION, 'own', owner, 'nonce', nonce, 'head', turn_id, 'cr', text(now), 'ttl', text(ttl_ms),
  'ax', text(absolute_ms), 'nm', '', 'ct', '', 'md', s[7], 'mt', s[8],
  'n', text(kept), 'b', text(bytes), 'tn', ARGV[9], 'lt', '', 'ln', number, 'lx', '0', 'lr', '', 'cx', '0',
  'eh', s[9], 'es', text(math.min(tonumber(s[10]), kept)),
  'it', '0', 'ot', '0', 'rt', '0', 'wt', '0', 'rev', '1', 'us', '', 'eo', '', 'eb', '0',
  'ctx', ARGV[15], 'ca', '0',
  'kv', s[12] or '0', 'ku', '0', 'kg', '0', 'kl', '', 'kc', '0', 'kt', '0', 'ki', '0', 'ko', '0')
if kept >= tonumber(s[13] or '0') then
  redis.call('HSET', SESSION, 'ku', s[13] or '0', 'kc', s[14] or '0', 'kt', s[15] or '0')
else
  redis.call('HDEL', TEXTS, 'checkpoint')
end
if ARGV[13] ~= '' then redis.call('HSET', TEXTS, 'title', ARGV[13]) end
if ARGV[14] ~= '' then redis.call('HSET', TEXTS, 'metadata', ARGV[14]) end
redis.call('UNLINK', LOG, SHARES)  -- of a session of this id that has expired: they may outlive that one
local size = { tag = tag, bytes = bytes, messages = kept, created = seconds_of_service(now) }
write_size(size)
count('messages', size.messages)
count('bytes', size.bytes)
count('age_s', size.created)
accessed_at(now)
live_until(end_of_life(now, ttl_ms, absolute_ms, 0))
return { 'CREATED' }
