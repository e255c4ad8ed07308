-- Purpose: which turn a request is, if it was sent before: by its idempotency key, or, where a client library sends it
-- again by itself, by its fingerprint.
-- RING: key digest → '<number> <fingerprint> <turn id>', and '#<number mod 128>' → the key digest of that turn, so that
-- it never holds more than the last 128 turns.
-- Needs: keys.lua, clock.lua.

local RING_TURNS = 128
local RETRY_MS = 600000

local function keyed_turn(key, last_number)
  local known = redis.call('HGET', RING, key)
  if not known then return nil end
  local number, fingerprint, id = string.match(known, '^(%d+) (%S+) (%S+)$')
  if tonumber(number) <= last_number - RING_TURNS then return nil end
  return { number = number, fingerprint = fingerprint, id = id }
end

local function remember(key, number, fingerprint, turn_id)
  local slot = '#' .. text(tonumber(number) % RING_TURNS)
  local old = redis.call('HGET', RING, slot)
  if old and old ~= key and not keyed_turn(old, tonumber(number)) then redis.call('HDEL', RING, old) end
  redis.call('HSET', RING, key, number .. ' ' .. fingerprint .. ' ' .. turn_id, slot, key)
end
