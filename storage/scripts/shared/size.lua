-- Purpose: the size record of a session and the counters that it feeds.
-- The record outlives the session (a natively expired key can no longer tell what it held), so that removing
-- the session later, for whatever reason, takes exactly what it had added.
-- Record: '<owner tag> <bytes> <messages> <created, seconds since 2026-01-01>'. Counters: messages, bytes, age_s.
-- Needs: keys.lua, clock.lua.

local SERVICE_EPOCH_S = 1767225600  -- sums of seconds since 1970 would overflow HINCRBY at some millions of sessions

-- A clock set before the epoch must not make a record that read_size does not know.
local function seconds_of_service(now)
  return math.max(0, math.floor(now / 1000) - SERVICE_EPOCH_S)
end

local function read_size()
  local record = redis.call('HGET', SIZES, ARGV[1])
  if not record then return nil end
  local tag, bytes, messages, created = string.match(record, '^(%S+) (%d+) (%d+) (%d+)$')
  if not tag then return nil end
  return { tag = tag, bytes = tonumber(bytes), messages = tonumber(messages), created = tonumber(created) }
end

local function write_size(size)
  redis.call('HSET', SIZES, ARGV[1],
    size.tag .. ' ' .. text(size.bytes) .. ' ' .. text(size.messages) .. ' ' .. text(size.created))
end

local function count(field, by)
  redis.call('HINCRBY', COUNTERS, field, text(by))
  redis.call('HINCRBY', OWNER_COUNTERS, field, text(by))
end

-- Takes the session out of keys, indexes, the lists of its grantees (KEYS 18…) and counters; `reason` is the counter of
-- such ends ('' counts nothing).
local function remove_session(size, reason)
  redis.call('UNLINK', SHARES, unpack(KEYS, 1, 9))
  for k = 18, #KEYS do redis.call('ZREM', KEYS[k], ARGV[1]) end
  for k = 10, 13 do redis.call('ZREM', KEYS[k], ARGV[1]) end
  redis.call('HDEL', SIZES, ARGV[1])
  if size then
    count('messages', 0 - size.messages)
    count('bytes', 0 - size.bytes)
    count('age_s', 0 - size.created)
  end
  if reason ~= '' then count(reason, 1) end
end
