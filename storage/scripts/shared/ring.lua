-- Purpose: which turn a request is, if it was sent before: by its idempotency key, or, where a client library sends it
-- again by itself, by its fingerprint.
-- RING: key digest → '<number> <began, s> <fingerprint> <turn id>', and '#<number mod 128>' → the key digest of that turn,
-- so that it holds no more than the last 128 turns' keys. For turns without a key '~<fingerprint>' stands for the key, and
-- '~<number mod 16>' for its place: of those the last 16 turns are enough, a retry comes within seconds.
-- Needs: keys.lua, clock.lua.

local KEYED_TURNS, UNKEYED_TURNS = 128, 16
local RETRY_S = 600

-- What the ring knows of a request; `last_number` is that of the session's last turn.
local function earlier_turn(key, fingerprint, last_number)
  local known = redis.call('HGET', RING, key ~= '' and key or '~' .. fingerprint)
  if not known then return nil end
  local number, began, print, id = string.match(known, '^(%d+) (%d+) (%S+) (%S+)$')
  if tonumber(number) <= last_number - (key ~= '' and KEYED_TURNS or UNKEYED_TURNS) then return nil end
  return { number = number, began = tonumber(began), fingerprint = print, id = id }
end

local function remember(key, fingerprint, number, turn_id, now)
  local turns, mark, name = KEYED_TURNS, '#', key
  if key == '' then turns, mark, name = UNKEYED_TURNS, '~', '~' .. fingerprint end
  local slot = mark .. text(tonumber(number) % turns)
  local old = redis.call('HGET', RING, slot)
  if old and old ~= name then
    local known = redis.call('HGET', RING, old)
    if known and tonumber(string.match(known, '^%d+')) <= tonumber(number) - turns then redis.call('HDEL', RING, old) end
  end
  redis.call('HSET', RING, slot, name,
    name, number .. ' ' .. text(math.floor(now / 1000)) .. ' ' .. fingerprint .. ' ' .. turn_id)
end
