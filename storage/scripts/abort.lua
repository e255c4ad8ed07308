#!lua flags=allow-oom
-- abort: the turn will not become history.
--
-- Guarantees: the verdict is written before anybody is told. Mode 'holder' (who ran the turn, or tried to begin it)
--   needs no live lease and settles even a turn id never seen here, so that a late begin of it is refused. Mode
--   'finder' (anybody else) answers LIVE while the lease holds. A turn with a verdict is told it, nothing is written.
--   If the turn had created the session and nothing was stored since, nor was it shared, the session goes with it. The log
--   of a streamed turn gets its end in the same script. Who has lost its role may still end the turn that it runs; of any
--   other it is told nothing without one.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 acting principal, 3 turn id, 4 mode: holder | finder, 5 ordinal of the last frame, 6 the frames
--   that the log does not have yet: what the caller is told ('' for both of a finder, or of a turn that is not streamed)
-- Replies: ABORTED verdict+number | REMOVED | SETTLED verdict+number | LIVE remaining_ms | UNKNOWN | ELSEWHERE owner_tag
--   | GONE
-- Complexity: O(log sessions). Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include lease
-- @include life
-- @include size
-- @include role
-- @include declared

local turn_id, mode = ARGV[3], ARGV[4]

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'lx', 'n', 'ct', 'ttl', 'ax', 'eo', 'eb')
local holds = s[2] == turn_id
if not s[1] or not (holds and mode == 'holder' or may(s[1], 'viewer')) then return { 'GONE' } end
local elsewhere = misdeclared(s[1])
if elsewhere then return elsewhere end
local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end

local now = now_ms()
if mode == 'finder' then
  if not holds then return { 'UNKNOWN' } end
  local remaining = lease_remaining_ms(s[4], now)
  if remaining > 0 then return { 'LIVE', text(remaining) } end
end

if mode == 'holder' and s[6] == turn_id and s[5] == '0' and (holds or s[2] == '')
  and redis.call('HLEN', SHARES) == 0 then
  remove_session(read_size(), '')
  return { 'REMOVED' }
end
local settled = 'A0'
if mode == 'finder' then
  settled = 'D' .. s[3]
  declare_dead(turn_id, s[3], s[9])
else
  if holds then settled = 'A' .. s[3] end
  redis.call('HSET', VERDICTS, turn_id, settled)
  if holds then log_end(s[3], s[9], s[10], ARGV[5], ARGV[6], 'told') end
end
if holds then redis.call('HSET', SESSION, 'lt', '', 'lx', '0', 'cx', '0', 'us', '') end
live_until(end_of_life(now, tonumber(s[7]), tonumber(s[8]), holds and 0 or tonumber(s[4])))
return { 'ABORTED', settled }
