#!lua
-- begin: take the lease of a session for one turn and number that turn.
--
-- Guarantees: at most one live lease a session; a turn id that has its verdict is told it and nothing is written;
--   the same turn id again, while it still holds the lease, gets the same answer (lease renewed, not renumbered);
--   a lease found over belongs to a turn that is declared dead here, in the same script, before the next begins.
--   The answer's head is what commit must present. A full server refuses the script before its first write.
-- KEYS 1-13: the session's keys, named in shared/keys.lua; TTL of 1-6 is the session's.
-- ARGV: 1 session id, 2 owner, 3 turn id, 4 replica, 5 lease ms, 6 pending turn record (opaque), 7 turns max
-- Replies: BEGUN number head messages bytes turns model epoch_hash epoch_start revision dead_turn_id
--   | BUSY turn_id remaining_ms | SETTLED verdict+number | GONE | TURNS_FULL | CORRUPT
-- Complexity: O(log sessions), whatever the history's length. Caller: storage/turns.py.
-- @include keys
-- @include clock
-- @include lease
-- @include life

local owner, turn_id, replica, lease_ms = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])

local s = redis.call('HMGET', SESSION, 'own', 'lt', 'ln', 'lx', 'head', 'n', 'b', 'tn', 'mt', 'ttl', 'ax', 'md',
  'eh', 'es', 'rev')
if not s[1] or s[1] ~= owner then return { 'GONE' } end
local holder, holder_number, lease_ends, head, messages, turns = s[2], s[3], s[4], s[5], s[6], tonumber(s[8])
local max_turns, ttl_ms, absolute_ms = tonumber(s[9]), tonumber(s[10]), tonumber(s[11])

local verdict = redis.call('HGET', VERDICTS, turn_id)
if verdict then return { 'SETTLED', verdict } end

local now = now_ms()
local again = holder == turn_id
if not again then
  local remaining = lease_remaining_ms(lease_ends, now)
  if holder ~= '' and remaining > 0 then return { 'BUSY', holder, text(remaining) } end
  if absolute_ms > 0 and now >= absolute_ms then return { 'GONE' } end
  if redis.call('HLEN', VERDICTS) >= tonumber(ARGV[7]) then return { 'TURNS_FULL' } end
  if max_turns > 0 and turns >= max_turns then return { 'TURNS_FULL' } end
end
if redis.call('LLEN', MESSAGES) ~= tonumber(messages) or redis.call('LLEN', TURNS) ~= tonumber(holder_number) then
  return { 'CORRUPT' }
end

local number, dead = holder_number, ''
if not again then
  if holder ~= '' then
    declare_dead(holder, holder_number)
    dead = holder
  end
  number = text(redis.call('RPUSH', TURNS, ARGV[6]))
  redis.call('HSET', SESSION, 'lt', turn_id, 'ln', number, 'cx', '0', 'us', '')
end
local ends = now + lease_ms
redis.call('HSET', SESSION, 'lx', text(ends), 'lr', replica)
accessed_at(now)
live_until(end_of_life(now, ttl_ms, absolute_ms, ends))
return { 'BEGUN', number, head, messages, s[7], s[8], s[12], s[13], s[14], s[15], dead }
