-- Purpose: one end of life for all keys of a session, and its place in the indexes.
-- Guarantee: native expiry of every key and the scores of the expiry indexes are the same millisecond, so a
-- session is visible whole or not at all.
-- Needs: keys.lua, clock.lua.

local LEASE_GRACE_MS = 60000

-- When the session ends: sliding, never past its absolute end, and never under a running turn
-- (which may commit past the absolute end; the session ends after it).
local function end_of_life(now, ttl_ms, absolute_ms, lease_end_ms)
  local at = now + ttl_ms
  if absolute_ms > 0 and at > absolute_ms then at = absolute_ms end
  if lease_end_ms > 0 and at < lease_end_ms + LEASE_GRACE_MS then at = lease_end_ms + LEASE_GRACE_MS end
  return at
end

local function live_until(at_ms)
  local at = text(at_ms)
  for k = 1, 8 do redis.call('PEXPIREAT', KEYS[k], at) end
  redis.call('ZADD', BY_EXPIRY, at, ARGV[1])
  redis.call('ZADD', OWNER_BY_EXPIRY, at, ARGV[1])
end

local function accessed_at(now)
  redis.call('HSET', SESSION, 'la', text(now))
  redis.call('ZADD', BY_ACCESS, text(now), ARGV[1])
  redis.call('ZADD', OWNER_BY_ACCESS, text(now), ARGV[1])
end
