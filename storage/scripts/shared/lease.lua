-- Purpose: when a lease is over, and how whoever finds it over says so.
-- Guarantee: a clock that jumped backwards cannot make a lease eternal: an end further away than any lease
-- may last (lease_ms_max) counts as over.
-- Needs: keys.lua, log.lua.

local LEASE_MS_MAX = 300000

local function lease_remaining_ms(ends, now)
  ends = tonumber(ends or '0')
  if ends <= now or ends > now + LEASE_MS_MAX then return 0 end
  return ends - now
end

-- The finder's half of abort: the verdict 'dead' is written before anybody concludes anything from the clock.
local function declare_dead(turn_id, number, logged)
  redis.call('HSET', VERDICTS, turn_id, 'D' .. number)
  log_end(number, logged, 0, '', '', 'dead')
end
