#!lua
-- append: a turn without Claude: messages become history as they are.
--
-- Guarantees: a compare-and-set on head like commit's, and only while no turn runs; the turn is numbered and has its
--   verdict at once. Repeatable by turn id, and by idempotency key while that is one of the last 128 turns'; a turn whose
--   lease is found over is declared dead here, and its key is free. It takes the role writer.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 acting principal, 3 turn id, 4 expected head, 5 turn record (opaque), 6 turns max,
--   7 fingerprint of the request, 8 digest of its idempotency key ('' none), 9 bytes of the messages,
--   10 how many attachments come with them, 11… the attachments as pairs name, bytes, then the messages (1 or more, opaque)
-- Replies: COMMITTED number | ANSWERED turn_id number | REUSED turn_id | SETTLED verdict+number
--   | BUSY turn_id remaining_ms | FENCED | TURNS_FULL | CORRUPT
--   | DENIED role | ELSEWHERE owner_tag | GONE
-- Complexity: O(new messages + log sessions), whatever the history's length. Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include lease
-- @include life
-- @include ring
-- @include whole
-- @include size
-- @include blobs
-- @include role
-- @include refusal
-- @include declared

local turn_id, fingerprint, key = ARGV[3], ARGV[7], ARGV[8]
local blobs, first = tonumber(ARGV[10]), 11
local first_message = first + 2 * blobs
local added = #ARGV - first_message + 1

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'lx', 'head', 'n', 'b', 'ttl', 'ax', 'eo')
local refused = refusal(s[1], 'writer') or misdeclared(s[1])
if refused then return refused end
local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end
local now = now_ms()
local remaining = lease_remaining_ms(s[4], now)
local known = key ~= '' and earlier_turn(key, fingerprint, tonumber(s[3]))
if known then
  local became = redis.call('HGET', VERDICTS, known.id)
  local running = not became and s[2] == known.id and remaining > 0
  local committed = became and string.sub(became, 1, 1) == 'C'
  if (running or committed) and known.fingerprint ~= fingerprint then return { 'REUSED', known.id } end
  if committed then return { 'ANSWERED', known.id, known.number } end
end
if s[2] ~= '' and remaining > 0 then return { 'BUSY', s[2], text(remaining) } end
if tonumber(s[9]) > 0 and now >= tonumber(s[9]) then return { 'GONE' } end
if s[5] ~= ARGV[4] then return { 'FENCED' } end
if redis.call('HLEN', VERDICTS) >= tonumber(ARGV[6]) then return { 'TURNS_FULL' } end
local messages, size = tonumber(s[6]), read_size()
if not is_whole(messages, s[3], s[2]) or not size then return { 'CORRUPT' } end
local bytes = tonumber(ARGV[9]) + new_blob_bytes(first, blobs)
size.messages, size.bytes = size.messages + added, size.bytes + bytes

if s[2] ~= '' then declare_dead(s[2], s[3], s[10]) end
keep_blobs(first, blobs)
for from = first_message, #ARGV, 500 do
  redis.call('RPUSH', MESSAGES, unpack(ARGV, from, math.min(from + 499, #ARGV)))
end
local number = text(redis.call('RPUSH', TURNS, ARGV[5]))
redis.call('HSET', VERDICTS, turn_id, 'C' .. number)
redis.call('HSET', SESSION, 'head', turn_id, 'n', text(messages + added), 'b', text(tonumber(s[7]) + bytes),
  'ln', number, 'lt', '', 'lx', '0', 'cx', '0', 'ct', '', 'us', '', 'eo', '')
if key ~= '' then remember(key, fingerprint, number, turn_id, now) end
write_size(size)
count('messages', added)
count('bytes', bytes)
accessed_at(now)
live_until(end_of_life(now, tonumber(s[8]), tonumber(s[9]), 0))
return { 'COMMITTED', number }
