#!lua flags=allow-oom
-- commit: the messages of a turn become history, if and only if the session's head is still what begin answered.
--
-- Guarantees: correctness is this compare-and-set, not the lease: an expired lease that nobody declared dead still
--   commits, a turn declared dead never does. Repeatable by turn id: a second commit is told the verdict and writes
--   nothing. Messages, turn record, verdict, head, usage, size, counters, the end of the log and the end of life change
--   together or not at all: whoever reads the end of a turn in the log can rely on its being stored.
-- KEYS 1-16: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 turn id, 3 expected head, 4 turn record (opaque), 5 model, 6 epoch hash, 7 epoch start
--   (index of the epoch's first message), 8 system prompt as JSON, 9 what requests begin with, opaque ('' = as stored, both),
--   10 revision as begin answered it (model and system prompt of a later patch stand; where this turn changes them the
--   revision moves on), 11 input, 12 output, 13 cache read, 14 cache written tokens, 15 messages kept of the history
--   ('' all; fewer: a rewind), 16 bytes of the messages that the rewind drops, 17 committed turns that it drops, 18 ordinal of the
--   last frame of the answer, 19 the frames that the log does not have yet, the last one included ('' for both of a turn
--   that is not streamed), 20 what the session's context is for Claude from now on, opaque, 21 bytes of the new messages,
--   22 how many attachments come with them, 23… the attachments as pairs name, bytes, then the new messages (0 or more, opaque)
-- Replies: COMMITTED number | SETTLED verdict+number | FENCED | CORRUPT | GONE
-- Complexity: O(new messages + log sessions), whatever the history's length. Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include life
-- @include size
-- @include blobs

local turn_id, expected_head = ARGV[2], ARGV[3]
local blobs, first = tonumber(ARGV[22]), 23
local first_message = first + 2 * blobs
local added = #ARGV - first_message + 1

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'head', 'n', 'b', 'tn', 'ttl', 'ax', 'it', 'ot', 'rt', 'wt',
  'rev', 'md', 'eo', 'eb')
if not s[1] then return { 'GONE' } end
local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end
if s[2] ~= turn_id or s[4] ~= expected_head then return { 'FENCED' } end
local number, messages = tonumber(s[3]), tonumber(s[5])
local size = read_size()
if redis.call('LLEN', MESSAGES) ~= messages or redis.call('LLEN', TURNS) < number or not size then
  return { 'CORRUPT' }
end
local kept, kept_bytes, turns = messages, tonumber(s[6]), tonumber(s[7]) + 1
if ARGV[15] ~= '' then
  kept, kept_bytes, turns = tonumber(ARGV[15]), kept_bytes - tonumber(ARGV[16]), turns - tonumber(ARGV[17])
  if kept > messages or kept_bytes < 0 or turns < 1 then return { 'CORRUPT' } end
end
local bytes = tonumber(ARGV[21]) + new_blob_bytes(first, blobs)
local input, output = tonumber(s[10]) + tonumber(ARGV[11]), tonumber(s[11]) + tonumber(ARGV[12])
local cache_read, cache_written = tonumber(s[12]) + tonumber(ARGV[13]), tonumber(s[13]) + tonumber(ARGV[14])
local messages_by, bytes_by = kept + added - size.messages, kept_bytes + bytes - size.bytes
size.messages, size.bytes = kept + added, kept_bytes + bytes

if kept < messages then
  if kept == 0 then redis.call('DEL', MESSAGES) else redis.call('LTRIM', MESSAGES, 0, kept - 1) end
  redis.call('RPUSH', CUTS, s[3] .. ' ' .. text(kept))
end

keep_blobs(first, blobs)
for from = first_message, #ARGV, 500 do
  redis.call('RPUSH', MESSAGES, unpack(ARGV, from, math.min(from + 499, #ARGV)))
end
redis.call('LSET', TURNS, number - 1, ARGV[4])
redis.call('HSET', VERDICTS, turn_id, 'C' .. s[3])
log_end(s[3], s[16], s[17], ARGV[18], ARGV[19], 'told')
local now = now_ms()
redis.call('HSET', SESSION, 'head', turn_id, 'n', text(size.messages), 'b', text(size.bytes), 'tn', text(turns),
  'eh', ARGV[6], 'es', ARGV[7], 'lt', '', 'lx', '0', 'cx', '0', 'ct', '', 'us', '',
  'it', text(input), 'ot', text(output), 'rt', text(cache_read), 'wt', text(cache_written), 'ctx', ARGV[20], 'ca', text(now))
if s[14] == ARGV[10] and (s[15] ~= ARGV[5] or ARGV[8] ~= '') then
  redis.call('HSET', SESSION, 'md', ARGV[5], 'rev', text(tonumber(s[14]) + 1))
  if ARGV[8] ~= '' then redis.call('HSET', TEXTS, 'system', ARGV[8]) end
end
if ARGV[9] ~= '' then redis.call('HSET', TEXTS, 'preamble', ARGV[9]) end
write_size(size)
count('messages', messages_by)
count('bytes', bytes_by)
accessed_at(now)
live_until(end_of_life(now, tonumber(s[8]), tonumber(s[9]), 0))
return { 'COMMITTED', s[3] }
