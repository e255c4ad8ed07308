#!lua flags=allow-oom
-- commit: the messages of a turn become history, if and only if the session's head is still what begin answered.
--
-- Guarantees: correctness is this compare-and-set, not the lease: an expired lease that nobody declared dead still
--   commits, a turn declared dead never does. Repeatable by turn id: a second commit is told the verdict and writes
--   nothing. Messages, turn record, verdict, head, usage, size, counters and end of life change together or not at all.
-- KEYS 1-12: the session's keys in the order of storage/README.md; TTL of 1-5 is the session's.
-- ARGV: 1 session id, 2 turn id, 3 expected head, 4 turn record (opaque), 5 model, 6 epoch hash, 7 epoch start
--   (index of the epoch's first message), 8 system prompt as JSON ('' = as stored), 9 input, 10 output,
--   11 cache read, 12 cache written tokens, 13 bytes of the messages, 14… the messages (0 or more, opaque)
-- Replies: COMMITTED number | SETTLED verdict+number | FENCED | CORRUPT | GONE
-- Complexity: O(new messages + log sessions), whatever the history's length. Caller: storage/turns.py.
-- @include clock
-- @include life
-- @include size

local turn_id, expected_head = ARGV[2], ARGV[3]
local bytes, first = tonumber(ARGV[13]), 14
local added = #ARGV - first + 1

local s = redis.call('HMGET', KEYS[1], 'own', 'lt', 'ln', 'head', 'n', 'b', 'tn', 'ttl', 'ax', 'it', 'ot', 'rt', 'wt')
if not s[1] then return { 'GONE' } end
local verdict = redis.call('HGET', KEYS[4], turn_id)
if verdict then return { 'SETTLED', verdict } end
if s[2] ~= turn_id or s[4] ~= expected_head then return { 'FENCED' } end
local number, messages = tonumber(s[3]), tonumber(s[5])
local size = read_size()
if redis.call('LLEN', KEYS[2]) ~= messages or redis.call('LLEN', KEYS[3]) < number or not size then
  return { 'CORRUPT' }
end
local input, output = tonumber(s[10]) + tonumber(ARGV[9]), tonumber(s[11]) + tonumber(ARGV[10])
local cache_read, cache_written = tonumber(s[12]) + tonumber(ARGV[11]), tonumber(s[13]) + tonumber(ARGV[12])
size.messages, size.bytes = size.messages + added, size.bytes + bytes

for from = first, #ARGV, 500 do
  redis.call('RPUSH', KEYS[2], unpack(ARGV, from, math.min(from + 499, #ARGV)))
end
redis.call('LSET', KEYS[3], number - 1, ARGV[4])
redis.call('HSET', KEYS[4], turn_id, 'C' .. s[3])
local now = now_ms()
redis.call('HSET', KEYS[1], 'head', turn_id, 'n', text(messages + added), 'b', text(tonumber(s[6]) + bytes),
  'tn', text(tonumber(s[7]) + 1), 'md', ARGV[5], 'eh', ARGV[6], 'es', ARGV[7], 'lt', '', 'lx', '0', 'cx', '0',
  'ct', '', 'us', '',
  'it', text(input), 'ot', text(output), 'rt', text(cache_read), 'wt', text(cache_written))
if ARGV[8] ~= '' then redis.call('HSET', KEYS[5], 'system', ARGV[8]) end
write_size(size)
count('messages', added)
count('bytes', bytes)
accessed_at(now)
live_until(end_of_life(now, tonumber(s[8]), tonumber(s[9]), 0))
return { 'COMMITTED', s[3] }
