#!lua
-- restore: a session as it was exported, whole and with its shares, under an id that is free.
--
-- Guarantees: repeatable by nonce, capped and inheriting nothing of its id, as create; there whole or not at all, shares
--   included: a restore that is sent again gives nobody a share that was taken away since. A principal with whom as many
--   sessions are shared as may be gets none, and is told. Nothing of it runs: a turn without a verdict is given aborted by
--   the caller. A full server refuses the script before its first write.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's. 18…: of each grantee the list of
--   what is shared with it (zset, no TTL).
-- ARGV: 1 session id, 2 owner, 3 owner tag, 4 nonce, 5 ttl ms, 6 absolute end ms (0 none), 7 name ('' none), 8 head
--   ('' the nonce), 9 created ms (0 now), 10 model, 11 max turns, 12 committed turns, 13 epoch hash, 14 epoch start,
--   15 input, 16 output, 17 cache read, 18 cache written tokens, 19 system prompt as JSON, 20 title, 21 metadata as JSON,
--   22 preamble, 23 tokens at which it is compacted (0 none), 24 what is to be kept then, 25 version of the checkpoint, 26 messages
--   that it covers (0 none), 27 created ms, 28 its tokens, 29 the summary (opaque), 30 input, 31 output tokens that checkpoints
--   have cost, 32 sessions that the owner may still have in this bucket, 33 the same for everybody together, 34 how many cuts,
--   35 how many turns, 36 bytes of the messages, 37 how many attachments, 38 sessions of one bucket that may be shared with
--   one principal, 39 what is known of the context (opaque), 40… the grantees, each with its role, in the order of their
--   keys; the cuts; of each turn its id, its verdict (letter and number, d if delivered) and its record; the attachments as
--   pairs name, bytes; then the messages
-- Replies: CREATED grantees that it is not shared with, because enough is | DUPLICATE | EXISTS | STALE | FULL owner
--   | FULL all
-- Complexity: O(what it holds). Caller: storage/transfer.py.
-- @include keys
-- @include clock
-- @include life
-- @include size
-- @include blobs

local owner, nonce = ARGV[2], ARGV[4]
local ttl_ms, absolute_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local cuts, turns, blobs = tonumber(ARGV[34]), tonumber(ARGV[35]), tonumber(ARGV[37])
local bytes_of_messages, first = tonumber(ARGV[36]), 40
local grantees = #KEYS - 17
local first_cut = first + 2 * grantees
local first_turn = first_cut + cuts
local first_blob = first_turn + 3 * turns
local first_message = first_blob + 2 * blobs
local STEP = 500

local known = redis.call('HMGET', SESSION, 'nonce', 'own')
if known[1] then
  if known[1] == nonce and known[2] == owner then return { 'DUPLICATE' } end
  return { 'EXISTS' }
end
if redis.call('HEXISTS', SIZES, ARGV[1]) == 1 then return { 'STALE' } end
if redis.call('ZCARD', OWNER_BY_ACCESS) >= tonumber(ARGV[32]) then return { 'FULL', 'owner' } end
if redis.call('ZCARD', BY_ACCESS) >= tonumber(ARGV[33]) then return { 'FULL', 'all' } end

local not_shared, lists = {}, {}
for at = 1, grantees do
  lists[at] = redis.call('ZCARD', KEYS[17 + at]) < tonumber(ARGV[38])
  if not lists[at] then not_shared[#not_shared + 1] = ARGV[first + 2 * (at - 1)] end
end

local now = now_ms()
local created = ARGV[9] == '0' and text(now) or ARGV[9]
local bytes = bytes_of_messages + new_blob_bytes(first_blob, blobs)
local size = { tag = ARGV[3], bytes = bytes, messages = #ARGV - first_message + 1, created = seconds_of_service(now) }

redis.call('HSET', SESSION, 'own', owner, 'nonce', nonce, 'head', ARGV[8] == '' and nonce or ARGV[8], 'cr', created,
  'ttl', text(ttl_ms), 'ax', text(absolute_ms), 'nm', ARGV[7], 'ct', '', 'md', ARGV[10], 'mt', ARGV[11],
  'n', text(size.messages), 'b', text(bytes), 'tn', ARGV[12], 'lt', '', 'ln', text(turns), 'lx', '0', 'lr', '', 'cx', '0',
  'eh', ARGV[13], 'es', ARGV[14], 'it', ARGV[15], 'ot', ARGV[16], 'rt', ARGV[17], 'wt', ARGV[18],
  'rev', '1', 'us', '', 'eo', '', 'eb', '0', 'ctx', ARGV[39], 'ca', '0', 'kv', ARGV[25], 'ku', ARGV[26], 'kg', '0', 'kl', '',
  'kc', ARGV[27], 'kt', ARGV[28], 'ki', ARGV[30], 'ko', ARGV[31])
redis.call('HSET', TEXTS, 'system', ARGV[19], 'title', ARGV[20], 'metadata', ARGV[21], 'tokens_target', ARGV[23],
  'instructions', ARGV[24])
if ARGV[26] ~= '0' then redis.call('HSET', TEXTS, 'checkpoint', ARGV[25] .. ' ' .. ARGV[26] .. '\n' .. ARGV[29]) end
if ARGV[22] ~= '' then redis.call('HSET', TEXTS, 'preamble', ARGV[22]) end
keep_blobs(first_blob, blobs)
for from = first_message, #ARGV, STEP do
  redis.call('RPUSH', MESSAGES, unpack(ARGV, from, math.min(from + STEP - 1, #ARGV)))
end
for at = first_turn, first_blob - 1, 3 do
  redis.call('RPUSH', TURNS, ARGV[at + 2])
  redis.call('HSET', VERDICTS, ARGV[at], ARGV[at + 1])
end
for at = first_cut, first_turn - 1 do redis.call('RPUSH', CUTS, ARGV[at]) end
redis.call('UNLINK', LOG, SHARES)  -- of a session of this id that has expired: they may outlive that one
for at = 1, grantees do
  if lists[at] then
    local place = first + 2 * (at - 1)
    redis.call('HSET', SHARES, ARGV[place], ARGV[place + 1])
    redis.call('ZADD', KEYS[17 + at], text(now), ARGV[1])
  end
end
write_size(size)
count('messages', size.messages)
count('bytes', size.bytes)
count('age_s', size.created)
accessed_at(now)
live_until(end_of_life(now, ttl_ms, absolute_ms, 0))
return { 'CREATED', unpack(not_shared) }
