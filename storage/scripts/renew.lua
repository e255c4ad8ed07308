#!lua flags=allow-oom
-- renew: keep the lease, log what was shown since, say how much was used so far, learn whether somebody asked to cancel.
--
-- Guarantees: only the holder renews; a turn with a verdict is told it and nothing is written. An expired lease
--   that nobody declared dead is taken up again. The session cannot expire under a running turn. Frames that the log has
--   already are not logged again. Of one turn 8 MiB are logged; then the log says overflow, and no more. Who has lost the
--   role writer since begin does not renew: the caller aborts.
-- KEYS 1-17: the session's keys, named in shared/keys.lua; TTL of 1-8 is the session's.
-- ARGV: 1 session id, 2 acting principal, 3 turn id, 4 lease ms, 5 usage so far, four numbers (short: the session hash
--   stays a listpack while no value exceeds 64 bytes), 6 ordinal of the last frame shown, 7 the frames since the last
--   renewal ('' for both: none)
-- Replies: RENEWED cancel_flag | SETTLED verdict+number | LOST | DENIED role ('' none) | ELSEWHERE owner_tag | GONE
-- Complexity: O(log sessions). Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include log
-- @include life
-- @include size
-- @include role
-- @include declared

local turn_id, lease_ms = ARGV[3], tonumber(ARGV[4])

local s = redis.call('HMGET', SESSION, 'lt', 'cx', 'ttl', 'ax', 'own', 'ln', 'eo', 'eb')
if not s[5] then return { 'GONE' } end
local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end
if s[1] ~= turn_id then return { 'LOST' } end
if not may(s[5], 'writer') then return { 'DENIED', role_of(s[5]) or '' } end
local elsewhere = misdeclared(s[5])
if elsewhere then return elsewhere end

local now = now_ms()
local ends = now + lease_ms
redis.call('HSET', SESSION, 'lx', text(ends), 'us', ARGV[5])
local logged, ordinal, frames = tonumber(s[7]), tonumber(ARGV[6]), ARGV[7]
if logged and ordinal and ordinal > logged then
  local bytes = tonumber(s[8]) + #frames
  if bytes > LOG_BYTES_MAX then
    log_end(s[6], s[7], s[8], '', '', 'overflow')
    redis.call('HSET', SESSION, 'eo', 'over')
  else
    log(s[6], ARGV[6], 'f', frames)
    redis.call('HSET', SESSION, 'eo', ARGV[6], 'eb', text(bytes))
  end
elseif logged then
  redis.call('PEXPIRE', LOG, LOG_LIFE_MS)
end
if redis.call('PEXPIRETIME', SESSION) < ends + LEASE_GRACE_MS then
  live_until(end_of_life(now, tonumber(s[3]), tonumber(s[4]), ends))
end
return { 'RENEWED', s[2] }
