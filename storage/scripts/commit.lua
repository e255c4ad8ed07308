#!lua flags=allow-oom
-- commit: the messages of a turn become history, if and only if the session's head is still what begin answered.
--
-- Guarantees: correctness is this compare-and-set, not the lease: an expired lease that nobody declared dead still
--   commits, a turn declared dead never does. Repeatable by turn id: a second commit is told the verdict and writes
--   nothing. Messages, turn record, verdict, head, usage, size, counters, the end of the log and the end of life change
--   together or not at all: whoever reads the end of a turn in the log can rely on its being stored. It takes the role
--   writer at this instant, too: a turn of somebody who has lost it since begin is not stored. A rewind that cuts into what
--   the checkpoint covers takes the checkpoint away; into what a claim covers, the claim.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 acting principal, 3 turn id, 4 expected head, 5 turn record (opaque), 6 model, 7 epoch hash,
--   8 epoch start (index of the epoch's first message), 9 system prompt as JSON, 10 what requests begin with, opaque
--   ('' = as stored, both), 11 revision as begin answered it (model and system prompt of a later patch stand; where this
--   turn changes them the revision moves on), 12 input, 13 output, 14 cache read, 15 cache written tokens, 16 messages kept
--   of the history ('' all; fewer: a rewind), 17 bytes of the messages that the rewind drops, 18 committed turns that it
--   drops, 19 ordinal of the last frame of the answer, 20 the frames that the log does not have yet, the last one included
--   ('' for both of a turn that is not streamed), 21 what the session's context is for Claude from now on, opaque,
--   22 bytes of the new messages, 23 how many attachments come with them, 24… the attachments as pairs name, bytes, then
--   the new messages (0 or more, opaque)
-- Replies: COMMITTED number | SETTLED verdict+number | FENCED | CORRUPT | DENIED role ('' none) | ELSEWHERE owner_tag | GONE
-- Complexity: O(new messages + log sessions), whatever the history's length. Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include life
-- @include size
-- @include blobs
-- @include role
-- @include declared
-- @include claimed

local turn_id, expected_head = ARGV[3], ARGV[4]
local blobs, first = tonumber(ARGV[23]), 24
local first_message = first + 2 * blobs
local added = #ARGV - first_message + 1

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'head', 'n', 'b', 'tn', 'ttl', 'ax', 'it', 'ot', 'rt', 'wt',
  'rev', 'md', 'eo', 'eb', 'ku', 'kg', 'kl')
if not s[1] then return { 'GONE' } end
local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end
if not may(s[1], 'writer') then return { 'DENIED', role_of(s[1]) or '' } end
local elsewhere = misdeclared(s[1])
if elsewhere then return elsewhere end
if s[2] ~= turn_id or s[4] ~= expected_head then return { 'FENCED' } end
local number, messages = tonumber(s[3]), tonumber(s[5])
local size = read_size()
if redis.call('LLEN', MESSAGES) ~= messages or redis.call('LLEN', TURNS) < number or not size then
  return { 'CORRUPT' }
end
local kept, kept_bytes, turns = messages, tonumber(s[6]), tonumber(s[7]) + 1
if ARGV[16] ~= '' then
  kept, kept_bytes, turns = tonumber(ARGV[16]), kept_bytes - tonumber(ARGV[17]), turns - tonumber(ARGV[18])
  if kept > messages or kept_bytes < 0 or turns < 1 then return { 'CORRUPT' } end
end
local bytes = tonumber(ARGV[22]) + new_blob_bytes(first, blobs)
local input, output = tonumber(s[10]) + tonumber(ARGV[12]), tonumber(s[11]) + tonumber(ARGV[13])
local cache_read, cache_written = tonumber(s[12]) + tonumber(ARGV[14]), tonumber(s[13]) + tonumber(ARGV[15])
local messages_by, bytes_by = kept + added - size.messages, kept_bytes + bytes - size.bytes
size.messages, size.bytes = kept + added, kept_bytes + bytes

if kept < messages then
  if kept == 0 then redis.call('DEL', MESSAGES) else redis.call('LTRIM', MESSAGES, 0, kept - 1) end
  redis.call('RPUSH', CUTS, s[3] .. ' ' .. text(kept))
  local covered, claim = tonumber(s[18] or '0'), claim_of(s[20])
  if kept < math.max(covered, claim and claim.covers or 0) then
    redis.call('HSET', SESSION, 'kg', text(tonumber(s[19] or '0') + 1), 'kl', '')
  end
  if kept < covered then
    redis.call('HSET', SESSION, 'ku', '0', 'kc', '0', 'kt', '0')
    redis.call('HDEL', TEXTS, 'checkpoint')
  end
end

keep_blobs(first, blobs)
for from = first_message, #ARGV, 500 do
  redis.call('RPUSH', MESSAGES, unpack(ARGV, from, math.min(from + 499, #ARGV)))
end
redis.call('LSET', TURNS, number - 1, ARGV[5])
redis.call('HSET', VERDICTS, turn_id, 'C' .. s[3])
log_end(s[3], s[16], s[17], ARGV[19], ARGV[20], 'told')
local now = now_ms()
redis.call('HSET', SESSION, 'head', turn_id, 'n', text(size.messages), 'b', text(size.bytes), 'tn', text(turns),
  'eh', ARGV[7], 'es', ARGV[8], 'lt', '', 'lx', '0', 'cx', '0', 'ct', '', 'us', '',
  'it', text(input), 'ot', text(output), 'rt', text(cache_read), 'wt', text(cache_written),
  'ctx', ARGV[21], 'ca', text(now))
if s[14] == ARGV[11] and (s[15] ~= ARGV[6] or ARGV[9] ~= '') then
  redis.call('HSET', SESSION, 'md', ARGV[6], 'rev', text(tonumber(s[14]) + 1))
  if ARGV[9] ~= '' then redis.call('HSET', TEXTS, 'system', ARGV[9]) end
end
if ARGV[10] ~= '' then redis.call('HSET', TEXTS, 'preamble', ARGV[10]) end
write_size(size)
count('messages', messages_by)
count('bytes', bytes_by)
accessed_at(now)
live_until(end_of_life(now, tonumber(s[8]), tonumber(s[9]), 0))
return { 'COMMITTED', s[3] }
